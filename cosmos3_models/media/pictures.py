"""Encoded pictures: a frame as PNG, JPEG or WebP, and the thumbnail and the sheet of a video's frames as JPEG."""

import io
from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

PictureFormat = Literal["png", "jpeg", "webp"]

SHEET_COLUMNS = 4
THUMBNAIL_SIDE = 320
PICTURE_QUALITY = 95


def encode_picture(frame: NDArray[np.uint8], kind: PictureFormat, quality: int = PICTURE_QUALITY) -> bytes:
    """Encode a uint8 RGB frame (height, width, 3).

    Args:
        kind: PNG is lossless; JPEG and WebP are lossy.
        quality: 1 to 100; PNG has no use for it.

    Raises:
        ValueError: the frame has another type or shape.
    """
    if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3:
        raise ValueError(f"frame: got {frame.dtype} {list(frame.shape)}, expected uint8 [height, width, 3]")
    # Without subsampling, because thin red and blue lines lose their colour in half as many samples.
    options = {"png": {}, "jpeg": {"quality": quality, "subsampling": 0}, "webp": {"quality": quality}}
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, kind, **options[kind])
    return buffer.getvalue()


def shrunk(frame: NDArray[np.uint8], side: int) -> Image.Image:
    """A uint8 RGB frame (height, width, 3) as a picture whose longer side has at most ``side`` pixels."""
    picture = Image.fromarray(frame)
    picture.thumbnail((side, side))
    return picture


def thumbnail(frame: NDArray[np.uint8]) -> bytes:
    """A uint8 RGB frame (height, width, 3) as a small JPEG."""
    return jpeg(shrunk(frame, THUMBNAIL_SIDE))


def sheet(pictures: Sequence[Image.Image]) -> Image.Image:
    """The pictures, all of one size, in rows of ``SHEET_COLUMNS``; the rest of the last row is black."""
    columns = min(SHEET_COLUMNS, len(pictures))
    width, height = pictures[0].size
    whole = Image.new("RGB", (columns * width, -(-len(pictures) // columns) * height))
    for index, picture in enumerate(pictures):
        whole.paste(picture, (index % columns * width, index // columns * height))
    return whole


def side_by_side(frames: Sequence[NDArray[np.uint8]]) -> bytes:
    """Uint8 RGB frames (height, width, 3), each as small as a thumbnail, in rows of one JPEG."""
    return jpeg(sheet([shrunk(frame, THUMBNAIL_SIDE) for frame in frames]))


def jpeg(picture: Image.Image) -> bytes:
    """The picture as JPEG."""
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG")
    return buffer.getvalue()
