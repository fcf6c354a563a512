"""HTTP routes in the shape of OpenAI's video API, and the one error form."""

import json
import string
from collections.abc import Sequence
from typing import Annotated, Any, Protocol
from urllib.parse import quote

from fastapi import APIRouter, Depends, FastAPI, Header, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import StreamingResponse
from starlette.exceptions import HTTPException

from serve.errors import ServingError
from serve.graph.artifacts import MEDIA_TYPES, ArtifactName
from serve.graph.stage_names import QUEUE
from serve.http.access import OPEN, Access, Cors, Guard
from serve.http.answers import IS_HEAD, Answers, answer_error, error_response
from serve.http.body import read_body
from serve.http.content import content_response
from serve.http.events import event_routes
from serve.http.health import not_ready
from serve.http.keys import ApiKeys, key_check
from serve.http.openapi import FILES, MADE, REQUEST_SCHEMA, describe, errors
from serve.http.pages.routes import pages
from serve.http.query import LIST_PARAMETERS, check_query, nested, read_query
from serve.jobs.videos import IDEMPOTENCY_KEY, Videos
from serve.schema import FinishedVideo, ModelCard, Video, VideoDeleted, VideoEstimate, VideoList, VideoRequest

POLL_MS = (500, 5000)  # least and most that a client is asked to wait before its next request
POLL_PART = 20  # of the time remaining
HEADER_SAFE = string.printable.strip().replace("%", "") + " "  # characters that a header may hold unchanged


class VideoService(Protocol):
    """The service behind the routes."""

    videos: Videos

    async def make(self, request: VideoRequest) -> FinishedVideo: ...

    async def store(
        self, request: VideoRequest, idempotency_key: str | None = None, request_id: str | None = None
    ) -> Video: ...

    async def estimated(self, request: VideoRequest) -> VideoEstimate: ...

    def model_cards(self) -> Sequence[ModelCard]: ...

    async def unready_stages(self) -> Sequence[str]: ...


def create_api(service: VideoService, access: Access = OPEN) -> FastAPI:
    """The routes over ``service``, with the keys, hosts and origins that ``access`` allows.

    Raises:
        ValueError: the file of keys contains no key.
    """
    api = FastAPI(title="Cosmos3 video generation", docs_url=None, redoc_url=None)

    @api.get("/health", response_model=dict[str, str], responses=errors(503))
    async def health() -> Any:
        """200 once every stage can take requests, 503 before."""
        if unready := await service.unready_stages():  # polled too often for a line in the log
            return error_response(not_ready(unready))
        return {"status": "ok"}

    api.include_router(pages())
    keys = ApiKeys(access.api_keys, access.api_keys_file)
    checks = [Depends(key_check(keys))] if keys.guard else []
    refused = errors(401, 503) if keys.guard else {}
    for router in (_making(service), _stored(service.videos), event_routes(service.videos)):
        api.include_router(router, prefix="/v1", dependencies=[*checks, Depends(check_query)], responses=refused)
    for kind in (ServingError, HTTPException, RequestValidationError):
        api.add_exception_handler(kind, answer_error)
    api.add_middleware(Guard, access)  # the middleware that is added last sees a request first
    api.add_middleware(Answers)
    api.add_middleware(Cors, access)
    describe(api)
    return api


def _making(service: VideoService) -> APIRouter:
    """Routes that make videos, and the model card."""
    router = APIRouter()

    @router.post("/videos", openapi_extra=REQUEST_SCHEMA, responses=errors(409, 413, 429, 503))
    async def create(
        request: Request,
        response: Response,
        idempotency_key: Annotated[str | None, Header(pattern=IDEMPOTENCY_KEY)] = None,
    ) -> Video:
        """Store a job and return its record. A job that was answered is not lost."""
        request_id = request.headers.get("x-request-id")
        video = await service.store(await read_body(request), idempotency_key, request_id)
        response.headers["openai-poll-after-ms"] = _poll_ms(video)
        return video

    @router.post(
        "/videos/sync",
        openapi_extra=REQUEST_SCHEMA,
        responses=MADE | errors(413, 429, 503),
        response_class=Response,
    )
    async def generate(request: Request) -> Response:
        """Make a video and return the mp4, or a PNG of one frame. If the client disconnects, the work stops."""
        video = await service.make(await read_body(request))
        image = video.get("image")
        data, kind = (video.get("mp4"), MEDIA_TYPES["video"]) if image is None else (image, MEDIA_TYPES["image"])
        return Response(data, media_type=kind, headers=timing_headers(video["record"]))

    @router.post("/videos/estimate", openapi_extra=REQUEST_SCHEMA, responses=errors(413, 503))
    async def estimate(request: Request) -> VideoEstimate:
        """Return how long this request would take now. Nothing is stored or made."""
        return await service.estimated(await read_body(request))

    @router.get("/models")
    async def models() -> dict[str, Any]:
        """Return the served model with its defaults and limits, once under each of its names."""
        return {"object": "list", "data": service.model_cards()}

    return router


def _stored(videos: Videos) -> APIRouter:
    """Routes of stored jobs and videos."""
    router = APIRouter()

    @router.get("/videos", responses=errors(404, 503), openapi_extra={"parameters": LIST_PARAMETERS})
    async def list_videos(request: Request) -> VideoList:
        """List videos in order of arrival, the newest first by default. Filters can be combined."""
        return await videos.list(read_query(nested(request.query_params)))

    @router.get("/videos/{video_id}", responses=errors(404, 503))
    async def retrieve(video_id: str, response: Response) -> Video:
        """Return the record: status, progress, place in the queue, time remaining. A failed job is a 200 as well."""
        video = await videos.retrieve(video_id)
        response.headers["openai-poll-after-ms"] = _poll_ms(video)
        return video

    @router.delete("/videos/{video_id}", responses=errors(404, 503))
    async def delete(video_id: str) -> VideoDeleted:
        """Delete the video. A running denoise stops before the next step."""
        return await videos.delete(video_id)

    @router.get(
        "/videos/{video_id}/content", responses=FILES | errors(404, 412, 416, 503), response_class=StreamingResponse
    )
    async def content(request: Request, video_id: str, variant: ArtifactName | None = None) -> Response:
        """Return the mp4 or, of a video of one frame, the PNG; or a JPEG of either. Supports range requests."""
        return await content_response(request, await videos.content(video_id, variant), IS_HEAD in request.scope)

    return router


def _poll_ms(video: Video) -> str:
    """Milliseconds until the next poll: a share of the time remaining; if that is unknown, OpenAI's own second."""
    least, most = POLL_MS
    return str(1000 if video.eta_s is None else min(most, max(least, int(video.eta_s * 1000 / POLL_PART))))


def timing_headers(record: dict[str, Any]) -> dict[str, str]:
    """Model, seed and seconds of a finished video, without its time in the queue. The name is percent-encoded."""
    durations = record["stage_durations"]
    return {
        "X-Model": quote(record["model"], safe=HEADER_SAFE),
        "X-Seed": str(record["seed"]),
        "X-Inference-Time-S": f"{sum(durations.values()) - durations.get(QUEUE, 0):.3f}",
        "X-Stage-Durations": json.dumps(durations),
    }
