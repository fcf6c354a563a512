"""The request in a JSON or form body."""

import json
from collections.abc import Iterable
from typing import Any, NamedTuple
from urllib.parse import parse_qsl

from fastapi import Request
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from serve.errors import InvalidRequest, TooLarge
from serve.http.query import nested
from serve.schema import VideoRequest, read_request

MAX_BODY_BYTES = 1 << 20
JSON_TYPE = "application/json"
FORM_TYPES = ("multipart/form-data", "application/x-www-form-urlencoded")
CHARSETS = ("utf-8", "us-ascii", "iso-8859-1", "windows-1252")
ENCODINGS = ("7bit", "8bit", "binary")


class Part(NamedTuple):
    """One part of a multipart body; its headers by lower-case name."""

    headers: dict[str, str]
    data: bytearray


async def read_body(request: Request) -> VideoRequest:
    """The request of a JSON or form body.

    Raises:
        ServingError: the body is too large, malformed or of another type, or a field is invalid.
    """
    content_type = request.headers.get("content-type", "")
    if (encoding := request.headers.get("content-encoding", "identity")) != "identity":
        raise InvalidRequest(f"content-encoding: got {encoding[:80]!r}, expected an uncompressed body")
    body = await _limited_body(request)
    try:
        return read_request(_fields(content_type, body))
    except RecursionError:
        raise InvalidRequest("body: got JSON that is nested too deeply, expected fields of text and numbers") from None


async def _limited_body(request: Request) -> bytes:
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and len(declared) < 20 and int(declared) > MAX_BODY_BYTES:
        raise _too_large()
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY_BYTES:
            raise _too_large()
    return bytes(body)


def _fields(content_type: str, body: bytes) -> dict[str, Any]:
    kind = content_type.split(";")[0].strip().lower()
    if kind == FORM_TYPES[0]:
        return nested(_once(_multipart_fields(content_type, body)))
    if kind == FORM_TYPES[1] and not body.lstrip().startswith(b"{"):  # curl labels JSON as a form by default
        return nested(_once(_urlencoded_fields(body)))
    if kind in (JSON_TYPE, FORM_TYPES[1], ""):
        return _json_fields(body)
    raise InvalidRequest(f"content-type: got {kind[:80]!r}, expected {JSON_TYPE} or {FORM_TYPES[0]}")


def _json_fields(body: bytes) -> dict[str, Any]:
    try:
        fields = json.loads(body, object_pairs_hook=_once)
        json.dumps(fields, ensure_ascii=False).encode()  # half a surrogate pair is not text
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"body: got malformed JSON ({error}), expected a JSON object") from None
    if not isinstance(fields, dict):
        raise InvalidRequest(f"body: got a JSON {type(fields).__name__}, expected an object")
    return fields


def _urlencoded_fields(body: bytes) -> list[tuple[str, str]]:
    try:
        return parse_qsl(body.decode(), keep_blank_values=True, errors="strict")
    except ValueError as error:
        raise _malformed_form(error) from None


def _multipart_fields(content_type: str, body: bytes) -> list[tuple[str, str]]:
    try:
        return [_text_field(part) for part in _parts(content_type, body)]
    except (FormParserError, ValueError) as error:
        raise _malformed_form(error) from None


def _parts(content_type: str, body: bytes) -> list[Part]:
    """The parts of a complete body, without what precedes the first boundary or follows the last one."""
    _, options = parse_options_header(content_type)
    boundary = options.get(b"boundary", b"")
    first = (b"\r\n" + body).find(b"\r\n--" + boundary)
    if not boundary or first < 0:
        raise ValueError("the boundary that separates its parts is missing")
    parts: list[Part] = []
    header, ended = (bytearray(), bytearray()), []

    def end_header() -> None:
        name, value = (text.decode("latin-1") for text in header)
        parts[-1].headers[name.lower()] = value
        for text in header:
            text.clear()

    parser = MultipartParser(
        boundary,
        {
            "on_part_begin": lambda: parts.append(Part({}, bytearray())),
            "on_header_field": lambda data, start, end: header[0].extend(data[start:end]),
            "on_header_value": lambda data, start, end: header[1].extend(data[start:end]),
            "on_header_end": end_header,
            "on_part_data": lambda data, start, end: parts[-1].data.extend(data[start:end]),
            "on_end": lambda: ended.append(True),
        },
    )
    parser.write(body[first:])
    if not ended:
        raise ValueError("it ends early")
    return parts


def _text_field(part: Part) -> tuple[str, str]:
    _, disposition = parse_options_header(part.headers.get("content-disposition"))
    _, kind = parse_options_header(part.headers.get("content-type"))
    if b"name" not in disposition:
        raise ValueError("a part has no name")
    name = disposition[b"name"].decode()
    if b"filename" in disposition:
        raise InvalidRequest(f"{name}: got a file, expected text, because no field takes a file", name)
    charset = kind.get(b"charset", CHARSETS[0].encode()).decode("latin-1").lower()
    encoding = part.headers.get("content-transfer-encoding", ENCODINGS[0]).strip().lower()
    for what, got, known in (("charset", charset, CHARSETS), ("content-transfer-encoding", encoding, ENCODINGS)):
        if got not in known:
            raise InvalidRequest(f"{name}: got the {what} {got[:80]!r}, expected one of {', '.join(known)}", name)
    return name, part.data.decode(charset)


def _once(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """The pairs as a mapping; a repeated name is refused."""
    fields: dict[str, Any] = {}
    for name, value in pairs:
        if name in fields:
            raise InvalidRequest(f"{name}: got the field twice, expected it once", name)
        fields[name] = value
    return fields


def _too_large() -> TooLarge:
    return TooLarge(f"body: got more than {MAX_BODY_BYTES} bytes, expected at most that many")


def _malformed_form(error: Exception) -> InvalidRequest:
    return InvalidRequest(f"body: got a malformed form ({error}), expected form fields")
