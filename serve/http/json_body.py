"""A JSON body that may contain a picture or clip: its data URL goes to a file while the body arrives."""

import json
import re
import secrets
from collections.abc import AsyncIterator, Mapping
from typing import Any

from serve.errors import InvalidRequest
from serve.http.limits import MAX_BODY_BYTES, once, too_large
from serve.inputs.data_urls import SCHEME, DataUrl, is_data_url
from serve.inputs.reference import FIELD, URLS
from serve.inputs.uploads import Receiver, Upload

INSIDE = re.compile(rb'(?:[^"\\]+|\\[^u]|\\u[0-9a-fA-F]{4})*', re.DOTALL)  # of a string, up to its end
BEFORE_URL = re.compile(rb'"(?:%s)"\s*:\s*$' % b"|".join(name.encode() for name in URLS))
LOOK_BACK = 64  # bytes in which the name of a URL's field is looked for
LONGEST_ESCAPE = 6


async def json_fields(chunks: AsyncIterator[bytes], receiver: Receiver) -> dict[str, Any]:
    """The fields of a JSON body, with an upload where it has a data URL.

    Raises:
        ServingError: the body is malformed, too large, or has a data URL in another field.
    """
    body = _Body(receiver)
    async for chunk in chunks:
        body.feed(chunk)
        if body.url is not None:
            await body.url.spool.flush()
    text, url = body.finish()
    fields = parsed(text)
    if url is None:
        return fields
    return _replaced(fields, body.placeholder, await url.spool.finish())


def parsed(body: bytes) -> dict[str, Any]:
    """The fields of a complete JSON body."""
    try:
        fields = json.loads(body, object_pairs_hook=once)
        json.dumps(fields, ensure_ascii=False).encode()  # half a surrogate pair is not text
    except (ValueError, RecursionError) as error:
        raise _malformed(str(error)) from None
    if not isinstance(fields, dict):
        raise InvalidRequest(f"body: got a JSON {type(fields).__name__}, expected an object")
    return fields


class _Body:
    """Divides a body into a data URL and all the rest, in which a placeholder takes the URL's place.

    Attributes:
        url: the data URL of the body, from its beginning on.
        placeholder: which no client can guess.
    """

    def __init__(self, receiver: Receiver) -> None:
        self._receiver = receiver
        self._rest = bytearray()
        self._carry = b""
        self._in_string = self._in_url = False
        self._start: bytes | None = None  # of a string that may become a data URL
        self.url: DataUrl | None = None
        self.placeholder = secrets.token_hex(16)

    def feed(self, chunk: bytes) -> None:
        """Take the next piece of the body."""
        data, self._carry = self._carry + chunk, b""
        while data:
            data = self._string(data) if self._in_string else self._outside(data)
        if len(self._rest) > MAX_BODY_BYTES:
            raise too_large()

    def finish(self) -> tuple[bytes, DataUrl | None]:
        """The body without its data URL, and that URL, if there is one."""
        if self._in_url:
            raise _malformed("a string does not end")
        if self.url is not None:
            self.url.finish()
        return bytes(self._rest + (self._start or b"") + self._carry), self.url

    def _outside(self, data: bytes) -> bytes:
        """Copy what precedes the next string."""
        text, quote, data = data.partition(b'"')
        self._rest += text
        if quote:
            self._in_string = True
            self._start = b"" if BEFORE_URL.search(self._rest[-LOOK_BACK:]) else None
            self._rest += quote
        return data

    def _string(self, data: bytes) -> bytes:
        """Take what ``data`` has of a string, to its end at most."""
        found = INSIDE.match(data)
        inside = found[0] if found else b""
        after = data[len(inside) :]
        ended = after.startswith(b'"')
        if after and not ended:
            if len(after) < LONGEST_ESCAPE:  # the rest of an escape is in the next chunk
                self._carry, after = after, b""
            else:  # no JSON, as the parser will say; the bytes pass unchanged
                inside, after = inside + after[:1], after[1:]
        self._take(inside, ended)
        if ended:
            self._in_string = self._in_url = False
            self._rest += b'"'
            return after[1:]
        return after

    def _take(self, inside: bytes, ended: bool) -> None:
        """Take a part of a string's text."""
        if self._start is not None:
            inside, self._start = self._start + inside, None
            if is_data_url(inside):
                self._open_url()
            elif len(inside) < len(SCHEME) and not ended:
                self._start = inside
                return
        if self._in_url and self.url is not None:
            self.url.feed(_unescaped(inside))
        else:
            self._rest += inside

    def _open_url(self) -> None:
        if self.url is not None:
            raise InvalidRequest(f"{FIELD}: got two files, expected one picture or one clip", FIELD)
        self.url = DataUrl(self._receiver.spool())
        self._in_url = True
        self._rest += self.placeholder.encode()


def _unescaped(inside: bytes) -> bytes:
    """The text of a part of a string: some writers of JSON escape the slash and the plus of base64."""
    if b"\\" not in inside:
        return inside
    try:
        return str(json.loads(b'"' + inside + b'"')).encode("utf-8", "replace")
    except ValueError as error:
        raise _malformed(str(error)) from None


def _replaced(fields: dict[str, Any], placeholder: str, upload: Upload) -> dict[str, Any]:
    """The fields, with the upload in the place of its placeholder."""
    reference = fields.get(FIELD)
    if isinstance(reference, Mapping) and placeholder in reference.values():
        replaced = {name: upload if value == placeholder else value for name, value in reference.items()}
        return {**fields, FIELD: replaced}
    raise InvalidRequest(f"{FIELD}: got a data URL in another field, expected it in this one", FIELD)


def _malformed(problem: str) -> InvalidRequest:
    return InvalidRequest(f"body: got malformed JSON ({problem}), expected a JSON object")
