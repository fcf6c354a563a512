"""Data URLs such as ``data:image/png;base64,...``, decoded piece by piece."""

import binascii

from cosmos3_models import InvalidInput
from serve.inputs.uploads import Spool

SCHEME = b"data:"
MAX_HEADER_BYTES = 256
MARKER = b";base64"
QUARTET = 4  # characters of base64 that stand for three bytes
RIGHT_FORM = "data:image/png;base64,... or data:video/mp4;base64,..."


def is_data_url(start: bytes | bytearray) -> bool:
    """Tell whether a URL that begins so has its data in itself."""
    return start[: len(SCHEME)].lower() == SCHEME


class DataUrl:
    """Decodes a data URL into a file. The media type in it counts for nothing: the content tells what it is.

    Args:
        spool: takes the decoded bytes.
    """

    def __init__(self, spool: Spool) -> None:
        self.spool = spool
        self._header: bytes | None = b""
        self._carry = b""
        self._ended = False

    def feed(self, text: bytes) -> None:
        """Decode the next piece of the URL.

        Raises:
            InvalidInput: it is no data URL in base64.
            TooLarge: the decoded data is too long.
        """
        if self._header is not None:
            self._header += text
            header, comma, text = self._header.partition(b",")
            if not comma and len(header) <= MAX_HEADER_BYTES:
                return
            if not is_data_url(header) or not header.lower().endswith(MARKER) or not comma:
                raise _malformed(header, "the data of a picture or clip is in base64")
            self._header = None
        self._decode(text)

    def finish(self) -> None:
        """Check that the URL is complete."""
        if self._header is not None:
            raise _malformed(self._header, "a comma precedes the data")
        if self._carry:
            raise _malformed(self._carry, "base64 comes in groups of four characters")

    def _decode(self, text: bytes) -> None:
        text = self._carry + text
        whole = len(text) // QUARTET * QUARTET
        self._carry, text = text[whole:], text[:whole]
        if not text:
            return
        if self._ended:
            raise _malformed(text[:QUARTET], "nothing follows the end of base64")
        try:
            self.spool.feed(binascii.a2b_base64(text, strict_mode=True))
        except binascii.Error as error:
            raise _malformed(text[:16], f"this is not base64 ({str(error).lower()})") from None
        self._ended = text.endswith(b"=")


def _malformed(got: bytes, why: str) -> InvalidInput:
    return InvalidInput("input_reference", got.decode("latin-1")[:40], RIGHT_FORM, why)
