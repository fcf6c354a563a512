"""Small pictures of a video: the thumbnail and the sheet of its frames, as JPEG."""

import io
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SHEET_COLUMNS = 4


def shrunk(frame: NDArray[np.uint8], side: int) -> Image.Image:
    """A uint8 RGB frame (height, width, 3) as a picture whose longer side has at most ``side`` pixels."""
    picture = Image.fromarray(frame)
    picture.thumbnail((side, side))
    return picture


def sheet(pictures: Sequence[Image.Image]) -> Image.Image:
    """The pictures, all of one size, in rows of ``SHEET_COLUMNS``; the rest of the last row is black."""
    columns = min(SHEET_COLUMNS, len(pictures))
    width, height = pictures[0].size
    whole = Image.new("RGB", (columns * width, -(-len(pictures) // columns) * height))
    for index, picture in enumerate(pictures):
        whole.paste(picture, (index % columns * width, index // columns * height))
    return whole


def jpeg(picture: Image.Image) -> bytes:
    """The picture as JPEG."""
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG")
    return buffer.getvalue()
