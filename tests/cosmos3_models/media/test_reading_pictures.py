"""Pictures from outside: modes, orientation, transparency, and everything that is refused."""

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.pipelines.cosmos.pipeline_cosmos3_omni import _preprocess_conditioning_image
from media_files import clip, film, picture, saved
from numpy.typing import NDArray
from PIL import Image, ImageOps

from cosmos3_models.errors import InvalidInput
from cosmos3_models.media import limits, reading
from cosmos3_models.media.resize import cover

NOISE = np.random.default_rng(5).integers(0, 256, (31, 46, 4), dtype=np.uint8)
RGB = Image.fromarray(NOISE[..., :3])
RGBA = Image.fromarray(NOISE)
GREY = Image.fromarray(NOISE[..., 0])


def read(folder: Path, data: bytes) -> NDArray[np.uint8]:
    """The one frame of a picture, with its name and the two ways to look at it checked."""
    path = saved(folder, data, "named_wrongly.mp4")
    (frame,) = reading.frames(path, 1, "first")
    assert reading.inspect(path) == reading.MediaInfo("image", frame.shape[2], frame.shape[1], 1)
    return frame[0]


def refused(folder: Path, data: bytes) -> str:
    path = saved(folder, data)
    with pytest.raises(InvalidInput) as error:
        reading.inspect(path)
    with pytest.raises(InvalidInput):
        list(reading.frames(path, 1, "first"))
    assert error.value.param == "input_reference"
    return str(error.value)


def on_white(image: Image.Image) -> Image.Image:
    rgba = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")


def exif(orientation: int) -> bytes:
    fields = Image.Exif()
    fields[0x0112] = orientation
    return fields.tobytes()


SAMPLES: dict[str, tuple[bytes, Image.Image]] = {
    "RGB png": (picture(RGB, "PNG"), RGB),
    "1 png": (picture(GREY.convert("1"), "PNG"), GREY.convert("1").convert("RGB")),
    "L png": (picture(GREY, "PNG"), GREY.convert("RGB")),
    "LA png": (picture(RGBA.convert("LA"), "PNG"), on_white(RGBA.convert("LA"))),
    "P png": (picture(RGB.quantize(16), "PNG"), RGB.quantize(16).convert("RGB")),
    "P png, one colour transparent": (
        picture(RGB.quantize(16), "PNG", transparency=3),
        on_white(Image.open(io.BytesIO(picture(RGB.quantize(16), "PNG", transparency=3)))),
    ),
    "RGBA png": (picture(RGBA, "PNG"), on_white(RGBA)),
    "16-bit png": (
        picture(Image.fromarray(np.asarray(GREY).astype(np.uint16) * 256 + 77), "PNG"),
        GREY.convert("RGB"),
    ),
    "RGBA webp": (picture(RGBA, "WEBP", lossless=True, exact=True), on_white(RGBA)),
    "RGB webp": (picture(RGB, "WEBP", lossless=True), RGB),
    "lossy webp": (
        picture(RGB, "WEBP", quality=50),
        Image.open(io.BytesIO(picture(RGB, "WEBP", quality=50))).convert("RGB"),
    ),
    "jpeg": (picture(RGB, "JPEG"), Image.open(io.BytesIO(picture(RGB, "JPEG")))),
    "L jpeg": (picture(GREY, "JPEG"), Image.open(io.BytesIO(picture(GREY, "JPEG"))).convert("RGB")),
    "progressive jpeg": (
        picture(RGB, "JPEG", progressive=True),
        Image.open(io.BytesIO(picture(RGB, "JPEG", progressive=True))),
    ),
    "CMYK jpeg": (
        picture(RGB.convert("CMYK"), "JPEG"),
        Image.open(io.BytesIO(picture(RGB.convert("CMYK"), "JPEG"))).convert("RGB"),
    ),
    "two jpegs in one, as phones write them": (
        picture(RGB, "MPO", save_all=True, append_images=[GREY.convert("RGB")]),
        Image.open(io.BytesIO(picture(RGB, "JPEG"))),
    ),
    "one pixel": (picture(Image.new("RGB", (1, 1), (9, 8, 7)), "PNG"), Image.new("RGB", (1, 1), (9, 8, 7))),
    "8 to 1": (picture(Image.new("RGB", (8, 64), (9, 8, 7)), "PNG"), Image.new("RGB", (8, 64), (9, 8, 7))),
}
SAMPLES |= {
    f"{kind} with orientation {orientation}": (
        picture(RGB, kind, exif=exif(orientation), **options),
        ImageOps.exif_transpose(Image.open(io.BytesIO(picture(RGB, kind, exif=exif(orientation), **options)))),
    )
    for kind, options in (("PNG", {}), ("JPEG", {}), ("WEBP", {"lossless": True}))
    for orientation in range(1, 9)
}


@pytest.mark.parametrize("name", SAMPLES)
def test_a_picture_is_read_upright_and_on_white(tmp_path: Path, name: str) -> None:
    data, expected = SAMPLES[name]
    np.testing.assert_array_equal(read(tmp_path, data), np.asarray(expected.convert("RGB")))


@pytest.mark.parametrize("name", SAMPLES)
def test_read_and_fitted_it_is_what_diffusers_gives_the_encoder(tmp_path: Path, name: str) -> None:
    data, upright = SAMPLES[name]
    ours = cover(read(tmp_path, data)[None], 48, 80)
    theirs = _preprocess_conditioning_image(upright, 48, 80)
    assert torch.equal(torch.from_numpy(ours).permute(0, 3, 1, 2).float() / 127.5 - 1.0, theirs)


def test_a_picture_is_repeated_as_often_as_asked(tmp_path: Path) -> None:
    path = saved(tmp_path, picture(RGB, "PNG"))
    for keep in ("first", "last"):
        frames = np.concatenate(list(reading.frames(path, 3, keep)))
        np.testing.assert_array_equal(frames, np.stack([np.asarray(RGB)] * 3))


def test_transparency_is_white_and_half_transparency_half_white(tmp_path: Path) -> None:
    image = Image.new("RGBA", (2, 1), (0, 0, 0, 0))
    image.putpixel((1, 0), (0, 0, 0, 128))
    assert read(tmp_path, picture(image, "PNG")).tolist() == [[[255] * 3, [127] * 3]]


def frames_of(kind: str, number: int) -> bytes:
    images = [Image.new("RGB", (8, 8), (index * 40, 0, 0)) for index in range(number)]
    return picture(images[0], kind, save_all=True, append_images=images[1:])


def bomb(width: int, height: int) -> bytes:
    """A PNG that declares a size, with a chunk of pixels that is valid but far too short."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(bytes(1000))), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def jpeg_bomb(width: int, height: int) -> bytes:
    data = bytearray(picture(RGB, "JPEG"))
    start = data.index(b"\xff\xc0")
    data[start + 5 : start + 9] = struct.pack(">HH", height, width)
    return bytes(data)


def webp_bomb(width: int, height: int) -> bytes:
    data = bytearray(picture(RGBA, "WEBP", exif=exif(1)))  # exif makes the header an extended one
    assert data[12:16] == b"VP8X"
    data[24:30] = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    return bytes(data)


OTHER = "a picture (PNG, JPEG, WebP) or a clip (mp4, mov, WebM, Matroska), because other files cannot be read"
STILL = "expected a still picture or a clip, because it is not clear which frame is meant"
TOO_LARGE = f"expected at most {limits.MAX_PICTURE_PIXELS} pixels, because decoding it would take too much memory"
TRUNCATED = "expected a whole one, because it ends before its own structure does"

REFUSED: list[tuple[str, bytes, str]] = [
    ("nothing", b"", f"got 'an empty file', expected {OTHER}"),
    ("text", b"hello, world", f"got 'a text file', expected {OTHER}"),
    ("text in another script", b"\xef\xbb\xbf" + "ночь, улица".encode(), f"got 'a text file', expected {OTHER}"),
    ("bytes", b"h\xe9llo, world", f"got 'a file that starts with 68 e9 6c 6c 6f 2c 20 77', expected {OTHER}"),
    ("drawing", b"<svg xmlns='http://www.w3.org/2000/svg'/>", f"got 'an SVG picture', expected {OTHER}"),
    ("markup", b"<?xml version='1.0'?><svg/>", f"got 'a text file', expected {OTHER}"),
    ("json", b'{"url": "file:///etc/passwd"}', f"got 'a text file', expected {OTHER}"),
    ("pdf", b"%PDF-1.7 ...", f"got 'a PDF document', expected {OTHER}"),
    ("gif", frames_of("GIF", 3), f"got 'a GIF', expected {OTHER}"),
    ("bmp", picture(RGB, "BMP"), f"got 'a BMP picture', expected {OTHER}"),
    ("tiff", picture(RGB, "TIFF"), f"got 'a TIFF picture', expected {OTHER}"),
    ("avif", picture(RGB, "AVIF"), f"got 'a HEIF or AVIF picture', expected {OTHER}"),
    ("animated png", frames_of("PNG", 3), f"got 'an animated PNG picture', {STILL}"),
    ("animated webp", frames_of("WEBP", 3), f"got 'an animated WebP picture', {STILL}"),
    ("png bomb", bomb(50_000, 50_000), f"got 'a picture of 50000 x 50000 pixels', {TOO_LARGE}"),
    ("png of 70 megapixels", bomb(10_000, 7_000), f"got 'a picture of 10000 x 7000 pixels', {TOO_LARGE}"),
    ("png of 90 megapixels", bomb(10_000, 9_000), f"got 'a picture of 10000 x 9000 pixels', {TOO_LARGE}"),
    ("jpeg bomb", jpeg_bomb(65_000, 65_000), f"got 'a picture of 65000 x 65000 pixels', {TOO_LARGE}"),
    ("webp bomb", webp_bomb(16_000, 16_000), f"got 'a picture of 16000 x 16000 pixels', {TOO_LARGE}"),
    (
        "thin",
        picture(Image.new("RGB", (129, 16)), "PNG"),
        "got 'a picture of 129 x 16 pixels', expected a long side of at most 8 times the short one, "
        "because only a small part of it would be visible",
    ),
    ("png that is cut", picture(RGB, "PNG")[:-1], f"got 'a truncated PNG file', {TRUNCATED}"),
    ("png with too few pixels", bomb(64, 64), "got 'a file that cannot be decoded', expected an undamaged"),
]


@pytest.mark.parametrize(("data", "answer"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED])
def test_a_file_is_refused_with_one_sentence(tmp_path: Path, data: bytes, answer: str) -> None:
    assert refused(tmp_path, data).startswith(f"input_reference: {answer}")


WHOLE = {
    "PNG": picture(RGB, "PNG"),
    "stored PNG": picture(RGB, "PNG", compress_level=0),
    "JPEG": picture(RGB, "JPEG", exif=exif(6)),
    "progressive JPEG": picture(RGB, "JPEG", progressive=True),
    "WebP": picture(RGB, "WEBP", lossless=True),
    "lossy WebP": picture(RGBA, "WEBP", exif=exif(6)),
}


@pytest.mark.parametrize("name", WHOLE)
def test_a_picture_truncated_anywhere_is_refused(tmp_path: Path, name: str) -> None:
    data = WHOLE[name]
    for length in [*range(0, 64), *range(64, len(data) - 16, 97), *range(len(data) - 16, len(data))]:
        refused(tmp_path, data[:length])


def test_a_changed_byte_of_a_png_is_found_by_its_checksums(tmp_path: Path) -> None:
    data = picture(RGB, "PNG")
    for place in range(8, len(data), 53):
        changed = bytearray(data)
        changed[place] ^= 0x10
        refused(tmp_path, bytes(changed))


def test_bytes_after_the_end_of_a_picture_do_no_harm(tmp_path: Path) -> None:
    for data in (picture(RGB, "PNG"), picture(RGB, "JPEG"), picture(RGB, "WEBP")):
        np.testing.assert_array_equal(read(tmp_path, data + b"some more"), read(tmp_path, data))


def test_a_size_is_refused_before_anything_is_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_: Any) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", load)
    monkeypatch.setattr("PIL.WebPImagePlugin.WebPImageFile.load", load)
    for data in (bomb(50_000, 50_000), jpeg_bomb(65_000, 65_000), webp_bomb(16_000, 16_000)):
        assert "50000" in (answer := refused(tmp_path, data)) or "65000" in answer or "16000" in answer


def test_a_clip_named_like_a_picture_is_a_clip(tmp_path: Path) -> None:
    assert reading.inspect(saved(tmp_path, clip(film()), "picture.png")).kind == "video"


def test_a_file_that_is_not_there_is_no_bad_picture(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        reading.inspect(tmp_path / "missing.png")
