"""The request in a JSON or form body."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from typing import Any, TypeVar
from urllib.parse import parse_qsl

from fastapi import Request

from serve.errors import InvalidRequest, invalid_input_refused
from serve.http.json_body import json_fields
from serve.http.limits import MAX_BODY_BYTES, MAX_BYTES_IN_ALL, MAX_WAIT_S, PROGRESS_BYTES, once, too_large, too_slow
from serve.http.multipart import malformed_form, multipart_fields
from serve.http.query import nested
from serve.inputs.reference import FIELD, received
from serve.inputs.uploads import Receiver

T = TypeVar("T")

JSON_TYPE = "application/json"
FORM_TYPES = ("multipart/form-data", "application/x-www-form-urlencoded")


async def read_body(
    request: Request, receiver: Receiver, read: Callable[[dict[str, Any]], T], file_field: str = FIELD
) -> T:
    """What ``read`` makes of the fields of a JSON or form body. A picture or clip is in a file of ``receiver``.

    Args:
        file_field: the one field in which a form may have a file.

    Raises:
        ServingError: the body is too large, too slow, malformed or of another type, or a field is invalid.
    """
    if (encoding := request.headers.get("content-encoding", "identity")) != "identity":
        raise InvalidRequest(f"content-encoding: got {encoding[:80]!r}, expected an uncompressed body")
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and len(declared) < 20 and int(declared) > MAX_BYTES_IN_ALL:
        raise too_large()
    try:
        with invalid_input_refused():
            return read(await _fields(request, receiver, file_field))
    except RecursionError:
        raise InvalidRequest("body: got JSON that is nested too deeply, expected fields of text and numbers") from None


async def _fields(request: Request, receiver: Receiver, file_field: str) -> dict[str, Any]:
    content_type = request.headers.get("content-type", "")
    kind = content_type.split(";")[0].strip().lower()
    chunks = _arriving(request.stream())
    if kind == FORM_TYPES[0]:
        return nested(await multipart_fields(content_type, chunks, receiver, file_field))
    if kind == FORM_TYPES[1]:
        return await _form_or_json(chunks, receiver)
    if kind in (JSON_TYPE, ""):
        return await json_fields(chunks, receiver)
    raise InvalidRequest(f"content-type: got {kind[:80]!r}, expected {JSON_TYPE} or {FORM_TYPES[0]}")


async def _arriving(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The chunks of a body while they arrive; ``too_slow`` if they no longer do."""
    left, arrived = MAX_WAIT_S, 0
    while True:
        asked = time.monotonic()
        try:
            async with asyncio.timeout(left):
                chunk = await anext(chunks, None)
        except TimeoutError:
            raise too_slow() from None
        if chunk is None:
            return
        left -= time.monotonic() - asked  # without the time that this server takes for a chunk
        arrived += len(chunk)
        if arrived >= PROGRESS_BYTES:
            left, arrived = MAX_WAIT_S, 0
        yield chunk


async def _form_or_json(chunks: AsyncIterator[bytes], receiver: Receiver) -> dict[str, Any]:
    """The fields of a urlencoded form, or of JSON, which curl labels as a form by default."""
    start = b""
    async for chunk in chunks:
        start += chunk
        if start.lstrip().startswith(b"{"):
            return await json_fields(_rejoined(start, chunks), receiver)
        if len(start) > MAX_BODY_BYTES:
            raise too_large()
    return await received(nested(once(_urlencoded_fields(start))), receiver)


async def _rejoined(start: bytes, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield start
    async for chunk in chunks:
        yield chunk


def _urlencoded_fields(body: bytes) -> list[tuple[str, str]]:
    try:
        return parse_qsl(body.decode(), keep_blank_values=True, errors="strict")
    except ValueError as error:
        raise malformed_form(error) from None
