"""A multipart form that may contain a picture or clip, which goes to a file while the form arrives."""

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from cosmos3_models import InvalidInput
from serve.errors import InvalidRequest
from serve.http.limits import MAX_BODY_BYTES, too_large
from serve.inputs.data_urls import SCHEME, DataUrl, is_data_url
from serve.inputs.reference import FIELD, URLS
from serve.inputs.uploads import Receiver, Spool

CHARSETS = ("utf-8", "us-ascii", "iso-8859-1", "windows-1252")
ENCODINGS = ("7bit", "8bit", "binary")
WITH_URL = tuple(f"{FIELD}[{name}]" for name in URLS)


async def multipart_fields(
    content_type: str, chunks: AsyncIterator[bytes], receiver: Receiver, file_field: str = FIELD
) -> dict[str, Any]:
    """The fields of a form, not yet nested, with an upload in the place of a file or data URL.

    Args:
        file_field: the one field that takes a file.

    Raises:
        ServingError: the form is malformed or too large, or has a file in another field.
    """
    try:
        form = _Form(content_type, receiver, file_field)
        async for chunk in chunks:
            form.feed(chunk)
            for part in form.parts[-1:]:
                if part.spool is not None:
                    await part.spool.flush()
        form.check_ended()
        return {part.name: await part.value() for part in form.parts}
    except InvalidInput:
        raise
    except (FormParserError, ValueError) as error:
        raise malformed_form(error) from None


def malformed_form(error: Exception) -> InvalidRequest:
    """The error of a form that cannot be read."""
    return InvalidRequest(f"body: got a malformed form ({error}), expected form fields")


@dataclass
class _Part:
    """One part: its headers by lower-case name, and its data, as text or in a file.

    Attributes:
        spool: of a file or a data URL, once it is known to be one.
        url: of a data URL.
        may_be_url: whether the part becomes a data URL if it begins like one.
    """

    headers: dict[str, str] = field(default_factory=dict)
    name: str = ""
    text: bytearray = field(default_factory=bytearray)
    spool: Spool | None = None
    url: DataUrl | None = None
    may_be_url: bool = False

    def take(self, data: bytes, receiver: Receiver) -> None:
        """Take the next piece of the data."""
        if self.url is not None:
            self.url.feed(data)
        elif self.spool is not None:
            self.spool.feed(data)
        else:
            self.text += data
            if self.may_be_url and is_data_url(self.text):
                self.url = DataUrl(receiver.spool())
                self.spool = self.url.spool
                self.url.feed(bytes(self.text))
            self.may_be_url = self.may_be_url and len(self.text) < len(SCHEME)

    async def value(self) -> Any:
        """The field's value: an upload, or text."""
        if self.url is not None:
            self.url.finish()
        if self.spool is not None:
            return await self.spool.finish()
        return _text(self)


class _Form:
    """Reads a form piece by piece.

    Attributes:
        parts: so far; the last one may be incomplete.
    """

    def __init__(self, content_type: str, receiver: Receiver, file_field: str) -> None:
        self.parts: list[_Part] = []
        self._receiver, self._file_field = receiver, file_field
        self._header = (bytearray(), bytearray())
        self._diverted = self._size = 0
        self._ended = False
        _, options = parse_options_header(content_type)
        boundary = options.get(b"boundary", b"")
        if not boundary:
            raise _no_boundary()
        self._first = b"\r\n--" + boundary
        self._preamble: bytes | None = b"\r\n"
        self._parser = MultipartParser(boundary, self._callbacks())

    def feed(self, chunk: bytes) -> None:
        """Read the next piece."""
        self._size += len(chunk)
        if self._preamble is not None:
            self._preamble += chunk
            start = self._preamble.find(self._first)
            if start >= 0:
                chunk, self._preamble = self._preamble[start + 2 :], None
        if self._preamble is None:
            self._parser.write(chunk)
        if self._size - self._diverted > MAX_BODY_BYTES:
            raise too_large()

    def check_ended(self) -> None:
        """Raise if parts are missing."""
        if self._preamble is not None:
            raise _no_boundary()
        if not self._ended:
            raise ValueError("it ends early")

    def _callbacks(self) -> Any:
        field_name, value = self._header
        return {
            "on_part_begin": lambda: self.parts.append(_Part()),
            "on_header_field": lambda data, start, end: field_name.extend(data[start:end]),
            "on_header_value": lambda data, start, end: value.extend(data[start:end]),
            "on_header_end": self._end_header,
            "on_headers_finished": self._open_part,
            "on_part_data": lambda data, start, end: self._take(data[start:end]),
            "on_end": self._end,
        }

    def _end_header(self) -> None:
        name, value = (text.decode("latin-1") for text in self._header)
        self.parts[-1].headers[name.lower()] = value
        for text in self._header:
            text.clear()

    def _open_part(self) -> None:
        """Decide where the data of a part goes."""
        part = self.parts[-1]
        _, disposition = parse_options_header(part.headers.get("content-disposition"))
        if b"name" not in disposition:
            raise ValueError("a part has no name")
        part.name = name = disposition[b"name"].decode()
        if any(other.name == name for other in self.parts[:-1]):
            raise InvalidRequest(f"{name}: got the field twice, expected it once", name)
        if b"filename" in disposition:
            if name != self._file_field:
                why = f"only {self._file_field} takes a file"
                raise InvalidRequest(f"{name}: got a file, expected text, because {why}", name)
            part.spool = self._receiver.spool()
        part.may_be_url = name in WITH_URL

    def _take(self, data: bytes) -> None:
        part = self.parts[-1]
        part.take(data, self._receiver)
        if part.spool is not None:
            self._diverted += len(data)

    def _end(self) -> None:
        self._ended = True


def _text(part: _Part) -> str:
    """The text of a part, in its own charset."""
    _, kind = parse_options_header(part.headers.get("content-type"))
    charset = kind.get(b"charset", CHARSETS[0].encode()).decode("latin-1").lower()
    encoding = part.headers.get("content-transfer-encoding", ENCODINGS[0]).strip().lower()
    for what, got, known in (("charset", charset, CHARSETS), ("content-transfer-encoding", encoding, ENCODINGS)):
        if got not in known:
            message = f"{part.name}: got the {what} {got[:80]!r}, expected one of {', '.join(known)}"
            raise InvalidRequest(message, part.name)
    return part.text.decode(charset)


def _no_boundary() -> ValueError:
    return ValueError("the boundary that separates its parts is missing")
