"""The request in a JSON or form body."""

import json
from typing import Any

from fastapi import Request
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException
from starlette.types import Message

from cosmos3_models import InvalidInput
from serve.errors import InvalidRequest, TooLarge
from serve.schema import VideoRequest, read_request

MAX_BODY_BYTES = 1 << 20
FORM_TYPES = ("multipart/form-data", "application/x-www-form-urlencoded")


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
