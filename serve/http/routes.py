"""HTTP routes in the shape of OpenAI's video API, and the one error form."""

from typing import Any

from fastapi import APIRouter, Depends, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import StreamingResponse
from starlette.exceptions import HTTPException

from serve.errors import ServingError
from serve.graph.artifacts import ArtifactName
from serve.http.access import OPEN, Access, Cors, Guard
from serve.http.answers import IS_HEAD, Answers, answer_error, error_response
from serve.http.content import content_response
from serve.http.derived import derived_routes
from serve.http.events import event_routes
from serve.http.health import not_ready
from serve.http.images import image_routes
from serve.http.keys import ApiKeys, key_check
from serve.http.making import answered, making_routes
from serve.http.openapi import FILES, describe, errors
from serve.http.pacing import ReportsReading
from serve.http.pages.routes import pages
from serve.http.query import LIST_PARAMETERS, check_query, nested, read_query
from serve.http.service import VideoService
from serve.jobs.videos import Videos
from serve.schema import Video, VideoDeleted, VideoList


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
    making = making_routes(service), derived_routes(service), image_routes(service)
    for router in (*making, _stored(service.videos), event_routes(service.videos)):
        api.include_router(router, prefix="/v1", dependencies=[*checks, Depends(check_query)], responses=refused)
    for kind in (ServingError, HTTPException, RequestValidationError):
        api.add_exception_handler(kind, answer_error)
    api.add_middleware(Guard, access)  # the middleware that is added last sees a request first
    api.add_middleware(Answers)
    api.add_middleware(Cors, access)
    api.add_middleware(ReportsReading)
    describe(api)
    return api


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
        return answered(await videos.retrieve(video_id), response)

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
