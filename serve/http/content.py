"""A stored file over HTTP: the whole, one range, or nothing if the client has it already (RFC 9110)."""

import re
from collections.abc import AsyncIterator
from datetime import UTC
from email.utils import formatdate, parsedate_to_datetime

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from serve.errors import NotFound, PreconditionFailed, RangeNotSatisfiable
from serve.jobs.media_store import Content

RANGE = re.compile(r"\s*bytes\s*=\s*([0-9]*)-([0-9]*)\s*", re.IGNORECASE)
ETAG = re.compile(r'(?:W/)?"[^"]*"')
MAX_DIGITS = 18  # no file is longer


async def content_response(request: Request, content: Content, head: bool) -> Response:
    """The response to a GET, or to a HEAD, which ignores ranges.

    Raises:
        ServingError: a precondition failed, the range is outside the file, or the file was just deleted.
    """
    headers = {
        "ETag": f'"{content.etag}"',
        "Last-Modified": formatdate(content.modified, usegmt=True),
        "Cache-Control": "private, no-cache",  # caches must not serve a deleted video
    }
    if _not_modified(request.headers, content, headers):
        return Response(status_code=304, headers=headers)
    headers |= {
        "Accept-Ranges": "bytes",
        "Content-Disposition": f'inline; filename="{content.filename}"',
        "Content-Type": content.media_type,
        "X-Content-Type-Options": "nosniff",
    }
    part = None if head else _range(request.headers, content, headers)
    start, end = part or (0, content.size)
    headers["Content-Length"] = str(end - start)
    if part:
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{content.size}"
    if head:
        return Response(headers=headers)
    return StreamingResponse(await _started(content.read(start, end)), 206 if part else 200, headers)


def _not_modified(asked: Headers, content: Content, ours: dict[str, str]) -> bool:
    """Whether the client has the file already: by its tag, or by its date if there is no tag."""
    if (expected := asked.get("if-match")) is not None:
        if expected.strip() != "*" and ours["ETag"] not in ETAG.findall(expected):
            raise PreconditionFailed(f"If-Match: got {expected[:80]!r}, expected {ours['ETag']}", "If-Match")
    elif (since := _seconds(asked.get("if-unmodified-since"))) is not None and int(content.modified) > since:
        message = f"If-Unmodified-Since: got an older time, expected {ours['Last-Modified']}"
        raise PreconditionFailed(message, "If-Unmodified-Since")
    if (known := asked.get("if-none-match")) is not None:
        return known.strip() == "*" or ours["ETag"] in {tag.removeprefix("W/") for tag in ETAG.findall(known)}
    since = _seconds(asked.get("if-modified-since"))
    return since is not None and int(content.modified) <= since


def _range(asked: Headers, content: Content, ours: dict[str, str]) -> tuple[int, int] | None:
    """First byte and end of the requested range; None for the whole file, also if the header is malformed.

    A request for several ranges, which a server may ignore, gets the whole file as well.
    """
    found = RANGE.fullmatch(asked.get("range", ""))
    if found is None or asked.get("if-range", ours["ETag"]) not in (ours["ETag"], ours["Last-Modified"]):
        return None
    first, last = (_number(text) for text in found.groups())
    if first is None:
        if last is None:
            return None
        start, end = max(0, content.size - last), content.size
    else:
        if last is not None and last < first:
            return None
        start, end = first, content.size if last is None else min(last + 1, content.size)
    if start >= end:
        message = f"Range: got {found[0][:80]!r}, expected a part of the {content.size} bytes"
        raise RangeNotSatisfiable(message, "Range", headers={"Content-Range": f"bytes */{content.size}"})
    return start, end


def _number(digits: str) -> int | None:
    """The number, also of more digits than ``int`` accepts."""
    return int(digits) if 0 < len(digits) <= MAX_DIGITS else (10**MAX_DIGITS if digits else None)


def _seconds(date: str | None) -> float | None:
    """Seconds since the epoch of an HTTP date; None if it is absent or malformed."""
    try:
        parsed = parsedate_to_datetime(date or "")
    except ValueError:
        return None
    return (parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)).timestamp()


async def _started(blocks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The same blocks, the first one already read, so that a deleted file is a 404 instead of a broken response."""
    try:
        first = await anext(blocks)
    except FileNotFoundError:
        raise NotFound("the file of this video no longer exists", "video_id") from None

    async def all_blocks() -> AsyncIterator[bytes]:
        yield first
        async for block in blocks:
            yield block

    return all_blocks()
