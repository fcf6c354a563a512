"""HTTP routes in the shape of OpenAI's video API, and the one error form."""

import json
import logging
from typing import Any, Protocol

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException
from starlette.types import Message

from cosmos3_models import InvalidInput
from serve.errors import (
    InvalidRequest,
    MethodNotAllowed,
    NotFound,
    NotReady,
    ServingError,
    TooLarge,
)
from serve.schema import FinishedVideo, ModelCard, VideoRequest, read_request

logger = logging.getLogger("ray.serve")

MAX_BODY_BYTES = 1 << 20

FORM_TYPES = ("multipart/form-data", "application/x-www-form-urlencoded")
REQUEST_SCHEMA: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {kind: {"schema": VideoRequest.model_json_schema()} for kind in ("application/json", *FORM_TYPES)},
    }
}
MP4: dict[int | str, dict[str, Any]] = {200: {"content": {"video/mp4": {}}, "description": "The finished video."}}


class VideoService(Protocol):
    """What the routes need."""

    async def generate(self, request: VideoRequest) -> FinishedVideo: ...

    def model_card(self) -> ModelCard: ...

    async def unready_stages(self) -> list[str]: ...


def create_api(service: VideoService) -> FastAPI:
    """The routes over ``service``."""
    api = FastAPI(title="Cosmos3 video generation", docs_url="/docs", redoc_url=None)

    @api.post("/v1/videos/sync", openapi_extra=REQUEST_SCHEMA, responses=MP4, response_class=Response)
    async def generate(request: Request) -> Response:
        """Make a video and answer with the mp4 itself. A client that goes away stops the work."""
        video = await service.generate(await read_body(request))
        return Response(video["mp4"], media_type="video/mp4", headers=timing_headers(video["record"]))

    @api.get("/v1/models")
    async def models() -> dict[str, Any]:
        """The model that is served, with its defaults and limits."""
        return {"object": "list", "data": [service.model_card()]}

    @api.get("/health")
    async def health() -> dict[str, str]:
        """200 once every stage can take requests, 503 before."""
        if unready := await service.unready_stages():
            raise NotReady(f"not ready: {', '.join(unready)}")
        return {"status": "ok"}

    for kind in (ServingError, HTTPException, Exception):
        api.add_exception_handler(kind, answer_error)
    return api


async def read_body(request: Request) -> VideoRequest:
    """The request of a JSON or form body.

    Raises:
        ServingError: the body is too large, of another type, malformed, or its fields are not what they should be.
    """
    kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
    body = await _limited_body(request)
    if kind in FORM_TYPES:
        fields = await _form_fields(request, body)
    elif kind in ("application/json", ""):
        fields = _json_fields(body)
    else:
        raise InvalidRequest(f"content-type: got {kind!r}, expected application/json or {FORM_TYPES[0]}")
    try:
        return read_request(fields)
    except InvalidInput as error:
        raise InvalidRequest.of(error) from None


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
    headers = {} if known.retry_after_s is None else {"Retry-After": f"{known.retry_after_s:.0f}"}
    return JSONResponse(known.body, known.status, headers)


def _as_serving_error(request: Request, error: Exception) -> ServingError:
    where = f"{request.method} {request.url.path}"
    if isinstance(error, HTTPException) and error.status_code == 404:
        return NotFound(f"no such route: {where}")
    if isinstance(error, HTTPException) and error.status_code == 405:
        return MethodNotAllowed(f"the route does not take this method: {where}")
    return ServingError("internal error; the log has the details under this request's id")


async def _limited_body(request: Request) -> bytes:
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY_BYTES:
            raise TooLarge(f"body: got more than {MAX_BODY_BYTES} bytes, expected at most that many")
    return body


def _json_fields(body: bytes) -> dict[str, Any]:
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"body: got malformed JSON ({error}), expected a JSON object") from None
    if not isinstance(fields, dict):
        raise InvalidRequest(f"body: got a JSON {type(fields).__name__}, expected an object")
    return fields


async def _form_fields(request: Request, body: bytes) -> dict[str, Any]:
    async def replay() -> Message:
        return {"type": "http.request", "body": body}

    try:
        form = await Request(request.scope, replay).form()
        if FORM_TYPES[0] in request.headers["content-type"].lower() and not body.rstrip().endswith(b"--"):
            raise ValueError("it is cut short")  # the parser takes what there is
    except (MultiPartException, HTTPException, ValueError) as error:
        raise InvalidRequest(f"body: got a malformed form ({error}), expected form fields") from None
    fields: dict[str, Any] = {}
    for name, value in form.multi_items():
        if isinstance(value, UploadFile):
            raise InvalidRequest(f"{name}: got a file, expected text, because no field takes a file", name)
        if name in fields:
            raise InvalidRequest(f"{name}: got the field twice, expected it once", name)
        fields[name] = value
    return fields
