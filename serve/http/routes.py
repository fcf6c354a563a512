"""HTTP routes in the shape of OpenAI's video API, and the one error form."""

import json
import string
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any, Protocol
from urllib.parse import quote

from fastapi import APIRouter, Depends, FastAPI, Header, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import StreamingResponse
from fastapi.sse import KEEPALIVE_COMMENT, format_sse_event
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from cosmos3_models.fields import Number
from serve.errors import QueueFull, ServingError
from serve.graph.artifacts import MEDIA_TYPES, ArtifactName
from serve.graph.stage_names import QUEUE
from serve.http.access import OPEN, Access, Cors, Guard
from serve.http.answers import IS_HEAD, Answers, answer_error, error_response
from serve.http.body import FORM_TYPES, JSON_TYPE, read_body
from serve.http.content import content_response
from serve.http.health import not_ready
from serve.http.keys import ApiKeys, key_check
from serve.http.pages import pages
from serve.http.query import LIST_PARAMETERS, check_query, nested, read_query
from serve.jobs.videos import IDEMPOTENCY_KEY, Videos
from serve.schema import FinishedVideo, ModelCard, Video, VideoDeleted, VideoEstimate, VideoList, VideoRequest

POLL_MS = (500, 5000)  # what clients are told to wait between two looks
POLL_PART = 20  # of the time to come
MAX_STREAMS = 192  # of events, open at a time: each holds one of the ingress's slots (serve/app.py) until its job ends
STREAM_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}  # nginx would hold events back
HEADER_SAFE = string.printable.strip().replace("%", "") + " "  # what a header may hold as it is

REQUEST_SCHEMA: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {kind: {"schema": VideoRequest.model_json_schema()} for kind in (JSON_TYPE, *FORM_TYPES)},
    }
}
Responses = dict[int | str, dict[str, Any]]
ERROR: dict[str, Any] = {
    "description": "An error.",
    "content": {
        "application/json": {
            "schema": {
                "type": "object",
                "required": ["error"],
                "properties": {
                    "error": {
                        "type": "object",
                        "required": ["message", "type", "param", "code"],
                        "properties": {
                            "message": {"type": "string"},
                            "type": {"type": "string"},
                            "param": {"type": ["string", "null"]},
                            "code": {"type": "string"},
                        },
                    }
                },
            }
        }
    },
}
MP4: Responses = {200: {"content": {"video/mp4": {}}, "description": "The finished video."}}
FILES: Responses = {
    status: {"content": {kind: {} for kind in sorted(set(MEDIA_TYPES.values()))}, "description": told}
    for status, told in ((200, "The file."), (206, "A range of the file."))
}
FILES[304] = {"description": "The client has this file already."}
EVENTS: Responses = {200: {"content": {"text/event-stream": {}}, "description": "Every step, then the end."}}


class VideoService(Protocol):
    """What the routes need."""

    videos: Videos

    async def make(self, request: VideoRequest) -> FinishedVideo: ...

    async def store(
        self, request: VideoRequest, idempotency_key: str | None = None, request_id: str | None = None
    ) -> Video: ...

    async def estimated(self, request: VideoRequest) -> VideoEstimate: ...

    def model_cards(self) -> Sequence[ModelCard]: ...

    async def unready_stages(self) -> Sequence[str]: ...


def create_api(service: VideoService, access: Access = OPEN) -> FastAPI:
    """The routes over ``service``, for those whom ``access`` lets in.

    Raises:
        ValueError: the file of keys holds none.
    """
    api = FastAPI(title="Cosmos3 video generation", docs_url=None, redoc_url=None)

    @api.get("/health", response_model=dict[str, str], responses=_errors(503))
    async def health() -> Any:
        """200 once every stage can take requests, 503 before."""
        if unready := await service.unready_stages():  # asked too often for a line in the log
            return error_response(not_ready(unready))
        return {"status": "ok"}

    api.include_router(pages())
    keys = ApiKeys(access.api_keys, access.api_keys_file)
    checks = [Depends(key_check(keys))] if keys.guard else []
    refused = _errors(401, 503) if keys.guard else {}
    for router in (_making(service), _kept(service.videos)):
        api.include_router(router, prefix="/v1", dependencies=[*checks, Depends(check_query)], responses=refused)
    for kind in (ServingError, HTTPException, RequestValidationError):
        api.add_exception_handler(kind, answer_error)
    api.add_middleware(Guard, access)  # the last one that is added is the first one that sees a request
    api.add_middleware(Answers)
    api.add_middleware(Cors, access)
    _describe(api)
    return api


def _making(service: VideoService) -> APIRouter:
    """Routes that make videos, and what is known of the model."""
    router = APIRouter()

    @router.post("/videos", openapi_extra=REQUEST_SCHEMA, responses=_errors(409, 413, 429, 503))
    async def create(
        request: Request,
        response: Response,
        idempotency_key: Annotated[str | None, Header(pattern=IDEMPOTENCY_KEY)] = None,
    ) -> Video:
        """Store a job and answer with its record; once it is answered it is not lost."""
        request_id = request.headers.get("x-request-id")
        video = await service.store(await read_body(request), idempotency_key, request_id)
        response.headers["openai-poll-after-ms"] = _poll_ms(video)
        return video

    @router.post(
        "/videos/sync",
        openapi_extra=REQUEST_SCHEMA,
        responses=MP4 | _errors(413, 429, 503),
        response_class=Response,
    )
    async def generate(request: Request) -> Response:
        """Make a video and answer with the mp4 itself. A client that goes away stops the work."""
        video = await service.make(await read_body(request))
        return Response(video["mp4"], media_type="video/mp4", headers=timing_headers(video["record"]))

    @router.post("/videos/estimate", openapi_extra=REQUEST_SCHEMA, responses=_errors(413, 503))
    async def estimate(request: Request) -> VideoEstimate:
        """How long this request would take if it came now. Nothing is stored or made."""
        return await service.estimated(await read_body(request))

    @router.get("/models")
    async def models() -> dict[str, Any]:
        """The model that is served, with its defaults and limits, under each of its names."""
        return {"object": "list", "data": service.model_cards()}

    return router


def _kept(videos: Videos) -> APIRouter:
    """Routes over stored jobs and videos."""
    router, streams = APIRouter(), EventStreams()

    @router.get("/videos", responses=_errors(404, 503), openapi_extra={"parameters": LIST_PARAMETERS})
    async def list_videos(request: Request) -> VideoList:
        """Videos by order of arrival, the newest first unless ``order`` says otherwise. Filters can be combined."""
        return await videos.list(read_query(nested(request.query_params)))

    @router.get("/videos/{video_id}", responses=_errors(404, 503))
    async def retrieve(video_id: str, response: Response) -> Video:
        """The record: status, progress, place in the queue, seconds to go. A failed job is a 200 as well."""
        video = await videos.retrieve(video_id)
        response.headers["openai-poll-after-ms"] = _poll_ms(video)
        return video

    @router.delete("/videos/{video_id}", responses=_errors(404, 503))
    async def delete(video_id: str) -> VideoDeleted:
        """Stop making the video, if it is being made, and forget it."""
        return await videos.delete(video_id)

    @router.get(
        "/videos/{video_id}/content", responses=FILES | _errors(404, 412, 416, 503), response_class=StreamingResponse
    )
    async def content(request: Request, video_id: str, variant: ArtifactName = "video") -> Response:
        """The mp4, or a JPEG of it; takes range requests."""
        return await content_response(request, await videos.content(video_id, variant), IS_HEAD in request.scope)

    @router.get(
        "/videos/{video_id}/events", responses=EVENTS | _errors(404, 429, 503), response_class=StreamingResponse
    )
    async def events(
        request: Request,
        video_id: str,
        last_event_id: Annotated[int | None, Number, Header(description="of the last event seen")] = None,
    ) -> Response:
        """Server-sent events: every step, then the end. Goes on behind ``Last-Event-ID``."""
        await videos.retrieve(video_id)  # an unknown id is an answer of its own, not an event
        if IS_HEAD in request.scope:
            return StreamingResponse(iter(()), media_type="text/event-stream", headers=STREAM_HEADERS)
        return EventResponse(streams, _event_stream(videos, video_id, last_event_id))

    return router


class EventStreams:
    """How many streams of events are open: those who follow jobs must leave room for all other requests."""

    def __init__(self) -> None:
        self._open = 0

    @contextmanager
    def one(self) -> Iterator[None]:
        """Count a stream while it is open; raise ``QueueFull`` where one more is too many."""
        if self._open >= MAX_STREAMS:
            raise QueueFull(f"{self._open} streams of events are open, which is the most; try again", retry_after_s=5)
        self._open += 1
        try:
            yield
        finally:
            self._open -= 1


class EventResponse(StreamingResponse):
    """Server-sent events; refused where too many are open."""

    def __init__(self, streams: EventStreams, events: AsyncIterator[bytes]) -> None:
        super().__init__(events, headers=STREAM_HEADERS, media_type="text/event-stream")
        self._streams = streams

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._streams.one():
            await super().__call__(scope, receive, send)


async def _event_stream(videos: Videos, video_id: str, last_event: int | None) -> AsyncIterator[bytes]:
    async for numbered in videos.events(video_id, last_event):
        if numbered is None:
            yield KEEPALIVE_COMMENT
        else:
            number, event = numbered
            yield format_sse_event(data_str=json.dumps(event), id=str(number))


def _poll_ms(video: Video) -> str:
    """A twentieth of the time to come, within limits; OpenAI's own second where it is unknown."""
    least, most = POLL_MS
    return str(1000 if video.eta_s is None else min(most, max(least, int(video.eta_s * 1000 / POLL_PART))))


def _errors(*statuses: int) -> Responses:
    return {status: ERROR for status in statuses}


def timing_headers(record: dict[str, Any]) -> dict[str, str]:
    """Model, seed and seconds of a finished video, the wait in the queue apart. A model's name is percent-encoded."""
    durations = record["stage_durations"]
    return {
        "X-Model": quote(record["model"], safe=HEADER_SAFE),
        "X-Seed": str(record["seed"]),
        "X-Inference-Time-S": f"{sum(durations.values()) - durations.get(QUEUE, 0):.3f}",
        "X-Stage-Durations": json.dumps(durations),
    }


def _describe(api: FastAPI) -> None:
    """Let the OpenAPI document promise the answers that any route can give, and not FastAPI's 422, which none does."""
    generate = api.openapi

    def openapi() -> dict[str, Any]:
        document = generate()
        for path, operations in document["paths"].items():
            for operation in operations.values():
                operation["responses"].pop("422", None)
                statuses = (400, 403, 421, 500) if path.startswith("/v1/") else (403, 421, 500)
                for status in statuses:
                    operation["responses"].setdefault(str(status), ERROR)
        schemas = document["components"]["schemas"]
        for name in ("HTTPValidationError", "ValidationError"):
            schemas.pop(name, None)
        return document

    api.openapi = openapi  # type: ignore[method-assign]
