"""Decode pictures from outside: whole, upright, on white."""

import io
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, ImagePalette, JpegImagePlugin, PngImagePlugin, TiffImagePlugin, WebPImagePlugin

from cosmos3_models.media.limits import check_picture_size, refusal

# Pillow imports them when a picture needs them, which a process without the right to open files cannot do.
IMPORTED_EARLY = (ImagePalette, TiffImagePlugin)

ORIENTATION = 0x0112  # a field of EXIF
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What turns a picture upright, by its orientation in EXIF."""


def decode_picture(file: BinaryIO, kind: str) -> NDArray[np.uint8]:
    """Decode a still PNG, JPEG or WebP picture to uint8 RGB (h, w, 3).

    Its EXIF orientation is applied and transparent parts become white. 16-bit samples keep their high byte. Colour
    profiles are ignored, as diffusers does.

    Raises:
        InvalidInput: too large, too thin or animated.
        Exception: whatever Pillow raises for damaged data.
    """
    picture = _opened(file, kind)
    check_picture_size(*picture.size)
    if getattr(picture, "is_animated", False):
        raise refusal(
            f"an animated {kind} picture", "a still picture or a clip", "it is not clear which frame is meant"
        )
    return rgb(picture)


def rgb(picture: Image.Image) -> NDArray[np.uint8]:
    """Convert a picture of any mode to uint8 RGB (h, w, 3), upright and on white, as ``decode_picture`` does."""
    picture.load()
    turn = UPRIGHT.get(picture.getexif().get(ORIENTATION, 1))
    flat = _on_white(picture)
    return np.asarray(flat if turn is None else flat.transpose(turn))


def _opened(file: BinaryIO, kind: str) -> ImageFile.ImageFile:
    """The picture with its header read. Not by ``Image.open``, which would try decoders that are not wanted here."""
    if kind == "PNG":
        return PngImagePlugin.PngImageFile(file)
    if kind == "JPEG":
        return JpegImagePlugin.JpegImageFile(file)
    data = file.read()
    check_picture_size(*_webp_size(data))  # Pillow's decoder allocates its canvas when it reads the header
    return WebPImagePlugin.WebPImageFile(io.BytesIO(data))


def _webp_size(data: bytes) -> tuple[int, int]:
    """Width and height from a WebP header: extended, lossless or lossy (RFC 9649)."""
    if data[12:16] == b"VP8X":
        return int.from_bytes(data[24:27], "little") + 1, int.from_bytes(data[27:30], "little") + 1
    if data[12:16] == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    return int.from_bytes(data[26:28], "little") & 0x3FFF, int.from_bytes(data[28:30], "little") & 0x3FFF


def _on_white(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith("I"):
        # Pillow clips 16-bit greys at 255, but takes the high byte of 16-bit colours.
        return Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8)).convert("RGB")
    if not picture.has_transparency_data:
        return picture.convert("RGB")
    picture = picture.convert("RGBA")
    canvas = Image.new("RGB", picture.size, "white")
    canvas.paste(picture, mask=picture.getchannel("A"))
    return canvas
