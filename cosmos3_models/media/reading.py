"""Read pictures and clips from outside.

What a file is follows from its content; its name is never looked at. Every problem with a file is one ``InvalidInput``
that names ``input_reference``; the limits are in ``limits.py``. Decoders are large C libraries, so a server calls the
same functions in ``isolated.py``.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import BinaryIO, Literal

import av
import numpy as np
from numpy.typing import NDArray

from cosmos3_models.errors import InvalidInput
from cosmos3_models.media.clips import decode_clip, shown
from cosmos3_models.media.formats import Format, format_of
from cosmos3_models.media.limits import refusal
from cosmos3_models.media.stills import decode_picture

Frames = NDArray[np.uint8]
Keep = Literal["first", "last"]


@dataclass(frozen=True)
class MediaInfo:
    """What a file holds. The size is the one on a screen, in pixels; a picture has 1 frame."""

    kind: Literal["image", "video"]
    width: int
    height: int
    frames: int


def inspect(path: Path) -> MediaInfo:
    """Decode a whole file and return what it holds.

    Raises:
        InvalidInput: the file is refused; the error says why.
        OSError: there is no such file, or it may not be read.
    """
    with path.open("rb") as file:
        return inspect_file(file)


def frames(path: Path, count: int, keep: Keep) -> Iterator[Frames]:
    """Yield ``count`` frames of a file in its own size, one at a time: uint8 (1, h, w, 3).

    A picture is shown upright and on white. Of a clip they are the first or the last frames; if there are fewer than
    ``count``, the last one is repeated. One frame is in memory at a time, so the last frames of a clip cost a second
    pass.

    Raises:
        InvalidInput: the file is refused; the error says why. Damage after the last frame needed is not found.
        OSError: there is no such file, or it may not be read.
    """
    with path.open("rb") as file:
        yield from frames_of_file(file, count, keep)


def inspect_file(file: BinaryIO) -> MediaInfo:
    """``inspect`` of an open file."""
    with _refusals():
        found = format_of(file)
        decoded = _decoded(file, found)
        height, width = _pixels(next(decoded)).shape[:2]
        return MediaInfo(found.kind, width, height, 1 + sum(1 for _ in decoded))


def frames_of_file(file: BinaryIO, count: int, keep: Keep) -> Iterator[Frames]:
    """``frames`` of an open file."""
    with _refusals():
        found = format_of(file)
        surplus = sum(1 for _ in _decoded(file, found)) - count if keep == "last" else 0
        kept = islice(_decoded(file, found), max(0, surplus), None)
        frame = _pixels(next(kept))
        yield frame[None]
        for _ in range(1, count):
            if (following := next(kept, None)) is not None:
                frame = _pixels(following)
            yield frame[None]


def _decoded(file: BinaryIO, found: Format) -> Iterator[Frames | av.VideoFrame]:
    """Every frame of a picture or clip. A clip's are not converted yet, because most of them are only counted."""
    if found.kind == "video":
        return decode_clip(file, found.demuxer)
    file.seek(0)
    return iter([decode_picture(file, found.demuxer)])


def _pixels(frame: Frames | av.VideoFrame) -> Frames:
    return shown(frame) if isinstance(frame, av.VideoFrame) else frame


@contextmanager
def _refusals() -> Iterator[None]:
    """Turn whatever a decoder raises into the one error of a bad file."""
    try:
        yield
    except InvalidInput:
        raise
    except MemoryError as error:
        raise refusal("a file that needs too much memory", "a smaller one", "this process has limits") from error
    except Exception as error:  # the libraries raise errors of many types for foreign bytes
        why = "a damaged file cannot be shown"
        raise refusal("a file that cannot be decoded", "an undamaged picture or clip", why) from error
