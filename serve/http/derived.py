"""Routes of videos that derive from earlier ones, as OpenAI's client calls them."""

from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter, Request, Response

from cosmos3_models import InvalidInput
from serve.errors import InvalidRequest
from serve.http.body import read_body
from serve.http.making import CallerHeaders, answered
from serve.http.openapi import EXTENSION_SCHEMA, REMIX_SCHEMA, errors
from serve.http.service import VideoService
from serve.inputs.reference import FIELD
from serve.inputs.uploads import Upload
from serve.schema import Video, VideoRequest, read_request

CLIP = "video"
CLIP_FORMS = 'a file in a multipart form, or {"id": "video_..."}'


def derived_routes(service: VideoService) -> APIRouter:
    """The routes of remixes and extensions."""
    router = APIRouter()

    @router.post("/videos/extensions", openapi_extra=EXTENSION_SCHEMA, responses=errors(408, 409, 413, 429, 503))
    async def extend(request: Request, response: Response, caller: CallerHeaders) -> Video:
        """Continue a finished video of this server, or a clip, for ``seconds``; the result has old and new frames."""
        with service.uploads.receiving() as receiver:
            clip, wanted = await read_body(request, receiver, _clip_and_request, CLIP)
            try:
                return answered(await service.extend(clip, wanted, caller), response)
            except InvalidRequest as error:
                raise _about_the_clip(error) from None

    @router.post("/videos/{video_id}/remix", openapi_extra=REMIX_SCHEMA, responses=errors(404, 408, 409, 413, 429, 503))
    async def remix(request: Request, response: Response, video_id: str, caller: CallerHeaders) -> Video:
        """Make a finished video again with another prompt; further fields replace those of its request."""
        with service.uploads.receiving() as receiver:
            wanted = await read_body(request, receiver, read_request)
            return answered(await service.remix(video_id, wanted, caller), response)

    return router


def _clip_and_request(fields: dict[str, Any]) -> tuple[Upload | str, VideoRequest]:
    """The clip, or the id of a video, and the rest of the request.

    Raises:
        InvalidInput: the clip is missing or has another form.
    """
    clip = fields.pop(CLIP, None)
    if isinstance(clip, Mapping) and set(clip) == {"id"} and isinstance(clip["id"], str):
        clip = clip["id"]
    elif not isinstance(clip, Upload):
        raise InvalidInput(CLIP, clip, CLIP_FORMS, "an extension continues one video")
    return clip, read_request(fields)


def _about_the_clip(error: InvalidRequest) -> InvalidRequest:
    """The error under the name that the clip has here."""
    if error.param != FIELD:
        return error
    return InvalidRequest(f"{CLIP}{error.message.removeprefix(FIELD)}", CLIP)
