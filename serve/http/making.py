"""Routes that make videos, and the model card."""

import json
import string
from typing import Annotated, Any
from urllib.parse import quote

from fastapi import APIRouter, Depends, Header, Request, Response

from serve.graph.artifacts import MEDIA_TYPES
from serve.graph.stage_names import QUEUE
from serve.http.body import read_body
from serve.http.openapi import MADE, REQUEST_SCHEMA, SYNC_SCHEMA, errors
from serve.http.service import VideoService
from serve.jobs.job import Caller
from serve.jobs.videos import IDEMPOTENCY_KEY
from serve.schema import Video, VideoEstimate, read_request

POLL_MS = (500, 5000)  # least and most that a client is asked to wait before its next request
POLL_PART = 20  # of the time remaining
HEADER_SAFE = string.printable.strip().replace("%", "") + " "  # characters that a header may hold unchanged


def _caller(request: Request, idempotency_key: Annotated[str | None, Header(pattern=IDEMPOTENCY_KEY)] = None) -> Caller:
    return Caller(idempotency_key, request.headers.get("x-request-id"))


CallerHeaders = Annotated[Caller, Depends(_caller)]
"""What the headers of a request say about the call."""


def making_routes(service: VideoService) -> APIRouter:
    """Routes that make videos, and the model card."""
    router = APIRouter()

    @router.post("/videos", openapi_extra=REQUEST_SCHEMA, responses=errors(408, 409, 413, 429, 503))
    async def create(request: Request, response: Response, caller: CallerHeaders) -> Video:
        """Store a job and return its record. A job that was answered is not lost."""
        with service.uploads.receiving() as receiver:
            wanted = await read_body(request, receiver, read_request)
            return answered(await service.store(wanted, caller), response)

    @router.post(
        "/videos/sync",
        openapi_extra=SYNC_SCHEMA,
        responses=MADE | errors(408, 413, 429, 502, 503),
        response_class=Response,
    )
    async def generate(request: Request) -> Response:
        """Make a video and return the mp4, or a PNG of one frame. If the client disconnects, the work stops."""
        with service.uploads.receiving() as receiver:
            video = await service.make(await read_body(request, receiver, read_request))
        image = video.get("image")
        data, kind = (video.get("mp4"), MEDIA_TYPES["video"]) if image is None else (image, MEDIA_TYPES["image"])
        return Response(data, media_type=kind, headers=timing_headers(video["record"]))

    @router.post("/videos/estimate", openapi_extra=REQUEST_SCHEMA, responses=errors(408, 413, 503))
    async def estimate(request: Request) -> VideoEstimate:
        """Return how long this request would take now. Nothing is stored or made."""
        with service.uploads.receiving() as receiver:
            return await service.estimated(await read_body(request, receiver, read_request))

    @router.get("/models")
    async def models() -> dict[str, Any]:
        """Return the served model with its defaults and limits, once under each of its names."""
        return {"object": "list", "data": service.model_cards()}

    return router


def answered(video: Video, response: Response) -> Video:
    """The record of a job, with the time of the next poll in the headers of the response."""
    response.headers["openai-poll-after-ms"] = _poll_ms(video)
    return video


def _poll_ms(video: Video) -> str:
    """Milliseconds until the next poll: a share of the time remaining; if that is unknown, OpenAI's own second."""
    least, most = POLL_MS
    return str(1000 if video.eta_s is None else min(most, max(least, int(video.eta_s * 1000 / POLL_PART))))


def timing_headers(record: dict[str, Any]) -> dict[str, str]:
    """Model, seed and seconds of a finished video, without its time in the queue. The name is percent-encoded.

    Also what became of its prompt, if the request asked for another one.
    """
    durations = record["stage_durations"]
    outcome = "failed" if record["prompt_upsampling_error"] else "revised" if record["revised_prompt"] else None
    return ({"X-Prompt-Upsampling": outcome} if outcome else {}) | {
        "X-Model": quote(record["model"], safe=HEADER_SAFE),
        "X-Seed": str(record["seed"]),
        "X-Inference-Time-S": f"{sum(durations.values()) - durations.get(QUEUE, 0):.3f}",
        "X-Stage-Durations": json.dumps(durations),
    }
