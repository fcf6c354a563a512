"""What every kind of body must keep to: sizes, times, no repeated name."""

from collections.abc import Iterable
from typing import Any

from serve.errors import InvalidRequest, TimedOut, TooLarge
from serve.inputs.uploads import MAX_UPLOAD_BYTES

MAX_BODY_BYTES = 1 << 20
"""Of all fields but a picture or clip."""

MAX_BYTES_IN_ALL = MAX_BODY_BYTES + MAX_UPLOAD_BYTES * 3 // 2
"""Of a whole body: base64 takes four bytes for three, and some writers of JSON escape a part of it."""


MAX_WAIT_S = 60.0
"""For the next ``PROGRESS_BYTES`` of a body: a stalled client must not keep one of the ingress's slots."""

PROGRESS_BYTES = 1 << 16


def once(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """The pairs as a mapping; a repeated name is refused."""
    fields: dict[str, Any] = {}
    for name, value in pairs:
        if name in fields:
            raise InvalidRequest(f"{name}: got the field twice, expected it once", name)
        fields[name] = value
    return fields


def too_large() -> TooLarge:
    """The error of a body over the limit."""
    return TooLarge(f"body: got more than {MAX_BODY_BYTES} bytes, expected at most that many")


def too_slow() -> TimedOut:
    """The error of a body that has stopped arriving."""
    return TimedOut(f"body: got less than {PROGRESS_BYTES} bytes in {MAX_WAIT_S:g} s, expected the rest of the body")
