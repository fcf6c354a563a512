"""HTTP routes in the shape of OpenAI's video API, and the one error form."""

import hashlib
import hmac
import json
import logging
from collections.abc import AsyncIterator, Sequence
from typing import Annotated, Any, Literal, Protocol

from fastapi import APIRouter, Depends, FastAPI, Header, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse, StreamingResponse
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from fastapi.sse import KEEPALIVE_COMMENT, format_sse_event
from starlette.background import BackgroundTask
from starlette.exceptions import HTTPException

from serve.body import FORM_TYPES, read_body
from serve.errors import InvalidRequest, MethodNotAllowed, NotFound, NotReady, QueueFull, ServingError, Unauthorized
from serve.page import read_page
from serve.schema import FinishedVideo, ModelCard, Video, VideoDeleted, VideoList, VideoRequest
from serve.videos import MAX_KEY_CHARS, MEDIA_TYPE, Content, Variant, Videos

logger = logging.getLogger("ray.serve")

POLL_MS = (500, 5000)  # what clients are told to wait between two looks
POLL_PART = 20  # of the time to come
MAX_STREAMS = 192  # of events, open at a time: each holds one of the ingress's slots (serve/app.py) until its job ends

REQUEST_SCHEMA: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {kind: {"schema": VideoRequest.model_json_schema()} for kind in ("application/json", *FORM_TYPES)},
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
    status: {"content": {kind: {} for kind in sorted(set(MEDIA_TYPE.values()))}, "description": told}
    for status, told in ((200, "The file."), (206, "A range of the file."))
}
EVENTS: Responses = {200: {"content": {"text/event-stream": {}}, "description": "Every step, then the end."}}


class VideoService(Protocol):
    """What the routes need."""

    videos: Videos

    async def generate(self, request: VideoRequest) -> FinishedVideo: ...

    async def submit(
        self, request: VideoRequest, idempotency_key: str | None = None, request_id: str | None = None
    ) -> Video: ...

    def model_cards(self) -> Sequence[ModelCard]: ...

    async def unready_stages(self) -> Sequence[str]: ...


def create_api(service: VideoService, api_keys: tuple[str, ...] = ()) -> FastAPI:
    """The routes over ``service``, for those who have one of the keys if there are any."""
    api = FastAPI(title="Cosmos3 video generation", docs_url="/docs", redoc_url=None)

    @api.get("/health", responses=_errors(503))
    async def health() -> dict[str, str]:
        """200 once every stage can take requests, 503 before."""
        if unready := await service.unready_stages():
            raise NotReady(f"not ready: {', '.join(unready)}")
        return {"status": "ok"}

    page, page_headers = read_page()

    @api.get("/", include_in_schema=False)
    async def web_page() -> HTMLResponse:
        return HTMLResponse(page, headers=page_headers)

    guard = [Depends(key_check(api_keys))] if api_keys else []
    refused = _errors(401) if api_keys else {}
    for router in (_making(service), _kept(service.videos)):
        api.include_router(router, prefix="/v1", dependencies=guard, responses=refused)
    for kind in (ServingError, HTTPException, RequestValidationError, Exception):
        api.add_exception_handler(kind, answer_error)
    return api


def _making(service: VideoService) -> APIRouter:
    """Routes that make videos, and what is known of the model."""
    router = APIRouter()

    @router.post("/videos", openapi_extra=REQUEST_SCHEMA, responses=_errors(400, 409, 413, 429, 503))
    async def create(
        request: Request,
        response: Response,
        idempotency_key: Annotated[str | None, Header(min_length=1, max_length=MAX_KEY_CHARS)] = None,
    ) -> Video:
        """Store a job and answer with its record; once it is answered it is not lost."""
        request_id = request.headers.get("x-request-id")
        video = await service.submit(await read_body(request), idempotency_key, request_id)
        response.headers["openai-poll-after-ms"] = _poll_ms(video)
        return video

    @router.post(
        "/videos/sync",
        openapi_extra=REQUEST_SCHEMA,
        responses=MP4 | _errors(400, 413, 429, 500, 503),
        response_class=Response,
    )
    async def generate(request: Request) -> Response:
        """Make a video and answer with the mp4 itself. A client that goes away stops the work."""
        video = await service.generate(await read_body(request))
        return Response(video["mp4"], media_type="video/mp4", headers=timing_headers(video["record"]))

    @router.get("/models")
    async def models() -> dict[str, Any]:
        """The model that is served, with its defaults and limits, under each of its names."""
        return {"object": "list", "data": service.model_cards()}

    return router


def _kept(videos: Videos) -> APIRouter:
    """Routes over stored jobs and videos."""
    router, streams = APIRouter(), EventStreams()

    @router.get("/videos", responses=_errors(400, 404, 503))
    async def list_videos(
        after: Annotated[str | None, Query(description="id of the last video of the page before")] = None,
        limit: Annotated[int, Query(ge=1, le=100)] = 20,
        order: Literal["asc", "desc"] = "desc",
    ) -> VideoList:
        """Videos by order of arrival, the newest first unless ``order`` says otherwise."""
        return await videos.list(after, limit, order)

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

    @router.get("/videos/{video_id}/content", responses=FILES | _errors(400, 404, 503), response_class=FileResponse)
    async def content(video_id: str, variant: Variant = "video") -> FileResponse:
        """The mp4, or a JPEG of it; takes range requests."""
        return _file(await videos.content(video_id, variant))

    @router.get(
        "/videos/{video_id}/events", responses=EVENTS | _errors(400, 404, 429, 503), response_class=StreamingResponse
    )
    async def events(
        video_id: str, last_event_id: Annotated[int | None, Header(description="of the last event seen")] = None
    ) -> StreamingResponse:
        """Server-sent events: every step, then the end. Goes on behind ``Last-Event-ID``."""
        await videos.retrieve(video_id)  # an unknown id is an answer of its own, not an event
        streams.check()
        events = streams.counted(_event_stream(videos, video_id, last_event_id))
        return StreamingResponse(events, media_type="text/event-stream")

    return router


class EventStreams:
    """How many streams of events are open: those who follow jobs must leave room for all other requests."""

    def __init__(self) -> None:
        self._open = 0

    def check(self) -> None:
        """Raise ``QueueFull`` where one more is too many."""
        if self._open >= MAX_STREAMS:
            raise QueueFull(f"{self._open} streams of events are open, which is the most; try again", retry_after_s=5)

    async def counted(self, events: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        self._open += 1
        try:
            async for event in events:
                yield event
        finally:
            self._open -= 1


def key_check(api_keys: tuple[str, ...]) -> Any:
    """A dependency that lets in who names one of the keys."""
    known = [hashlib.sha256(key.encode()).digest() for key in api_keys]
    Bearer = Annotated[HTTPAuthorizationCredentials | None, Depends(HTTPBearer(auto_error=False))]

    async def check(credentials: Bearer) -> None:
        got = hashlib.sha256((credentials.credentials if credentials else "").encode()).digest()
        # All are compared, each in constant time, so that the time taken tells nothing.
        if not any([hmac.compare_digest(got, key) for key in known]):
            raise Unauthorized("Authorization: got no valid key, expected 'Bearer KEY' with a key of this server")

    return check


async def _event_stream(videos: Videos, video_id: str, last_event: int | None) -> AsyncIterator[bytes]:
    async for numbered in videos.events(video_id, last_event):
        if numbered is None:
            yield KEEPALIVE_COMMENT
        else:
            number, event = numbered
            yield format_sse_event(data_str=json.dumps(event), id=str(number))


def _file(content: Content) -> FileResponse:
    cleanup = BackgroundTask(content.path.unlink) if content.temporary else None
    return FileResponse(
        content.path,
        media_type=content.media_type,
        filename=content.filename,
        content_disposition_type="inline",
        background=cleanup,
    )


def _poll_ms(video: Video) -> str:
    """A twentieth of the time to come, within limits; OpenAI's own second where it is unknown."""
    least, most = POLL_MS
    return str(1000 if video.eta_s is None else min(most, max(least, int(video.eta_s * 1000 / POLL_PART))))


def _errors(*statuses: int) -> Responses:
    return {status: ERROR for status in statuses}


def timing_headers(record: dict[str, Any]) -> dict[str, str]:
    """Model, seed and seconds of a finished video."""
    durations = record["stage_durations"]
    return {
        "X-Model": record["model"],
        "X-Seed": str(record["seed"]),
        "X-Inference-Time-S": f"{sum(durations.values()):.3f}",
        "X-Stage-Durations": json.dumps(durations),
    }


async def answer_error(request: Request, error: Exception) -> Response:
    """Every failure in the one form; what is not the client's doing leaves its trace in the log alone."""
    known = error if isinstance(error, ServingError) else _as_serving_error(request, error)
    trace = None if known is error else error
    logger.log(
        logging.ERROR if trace else logging.WARNING, f"{request.method} {request.url.path}: {known}", exc_info=trace
    )
    return JSONResponse(known.body, known.status, known.headers)


def _as_serving_error(request: Request, error: Exception) -> ServingError:
    if isinstance(error, RequestValidationError):
        found = error.errors()[0]
        name = str(found["loc"][-1])
        return InvalidRequest(f"{name}: got {str(found['input'])[:80]!r}, expected: {found['msg']}", name)
    where = f"{request.method} {request.url.path}"
    if isinstance(error, HTTPException) and error.status_code == 404:
        return NotFound(f"no such route: {where}")
    if isinstance(error, HTTPException) and error.status_code == 405:
        return MethodNotAllowed(f"the route does not take this method: {where}")
    return ServingError("internal error; the log has the details under this request's id")
