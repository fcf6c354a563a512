"""Frames of the pictures and clips that a caller in this process hands over: files, pictures of Pillow, arrays."""

from collections.abc import Iterator
from os import PathLike
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cosmos3_models.errors import InvalidInput
from cosmos3_models.media import reading
from cosmos3_models.media.limits import PARAM
from cosmos3_models.media.reading import Keep
from cosmos3_models.media.stills import rgb
from cosmos3_models.references import ReferenceKind

Frames = NDArray[np.uint8]
File = str | PathLike[str]
Picture = File | Image.Image | Frames
"""A file, a picture of Pillow, or uint8 RGB (h, w, 3)."""
Clip = File | Frames
"""A file, or uint8 RGB (frames, h, w, 3)."""

DIMENSIONS: dict[ReferenceKind, int] = {"image": 3, "video": 4}


class Source(NamedTuple):
    """A picture or clip from a caller."""

    kind: ReferenceKind
    media: Picture

    def frames(self, count: int, keep: Keep) -> Iterator[Frames]:
        """Yield ``count`` frames in their own size, uint8 (1, h, w, 3), as ``reading.frames`` does.

        Raises:
            InvalidInput: no picture or clip, or one of the other kind.
            OSError: there is no such file, or it may not be read.
        """
        if isinstance(self.media, str | PathLike):
            return self._of_file(Path(self.media), count, keep)
        pixels = rgb(self.media) if isinstance(self.media, Image.Image) else self.media
        return _repeated(self._checked(pixels), count, keep)

    def _of_file(self, path: Path, count: int, keep: Keep) -> Iterator[Frames]:
        found = reading.inspect(path).kind
        if found != self.kind:
            raise InvalidInput(PARAM, str(path), f"a file for {self.kind}", f"this is one for {found}")
        return reading.frames(path, count, keep)

    def _checked(self, pixels: object) -> Frames:
        """All frames of an array, (n, h, w, 3)."""
        expected = "uint8 RGB (h, w, 3)" if self.kind == "image" else "uint8 RGB (frames, h, w, 3)"
        if not isinstance(pixels, np.ndarray):
            raise InvalidInput(PARAM, type(pixels).__name__, f"a file or {expected}", "nothing else is read")
        good = pixels.dtype == np.uint8 and pixels.ndim == DIMENSIONS[self.kind] and pixels.shape[-1] == 3
        if not good or not pixels.size:
            raise InvalidInput(PARAM, f"{pixels.dtype} {pixels.shape}", expected, "its pixels could mean anything")
        return pixels if self.kind == "video" else pixels[None]


def source_of(image: Picture | None, video: Clip | None) -> Source | None:
    """Return the picture or the clip; None without either.

    Raises:
        InvalidInput: both.
    """
    if image is not None and video is not None:
        why = "a video begins with a picture or with a clip"
        raise InvalidInput(PARAM, "a picture and a clip", "one of the two", why)
    if image is not None:
        return Source("image", image)
    return None if video is None else Source("video", video)


def _repeated(frames: Frames, count: int, keep: Keep) -> Iterator[Frames]:
    kept = frames[:count] if keep == "first" else frames[-count:]
    for index in range(count):
        place = min(index, len(kept) - 1)
        yield kept[place : place + 1]
