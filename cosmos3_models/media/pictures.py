"""Pictures: an image as PNG, and small ones of a video as JPEG, the thumbnail and the sheet of its frames."""

import io
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SHEET_COLUMNS = 4
THUMBNAIL_SIDE = 320


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


def png(frame: NDArray[np.uint8]) -> bytes:
    """A uint8 RGB frame (height, width, 3) as PNG, which keeps every pixel."""
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, "PNG")
    return buffer.getvalue()


def jpeg(picture: Image.Image) -> bytes:
    """The picture as JPEG."""
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG")
    return buffer.getvalue()
