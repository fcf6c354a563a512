"""Frames to PNG, JPEG and WebP, read back with Pillow."""

import io

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from cosmos3_models.media.pictures import PictureFormat, encode_picture


@pytest.fixture
def frame() -> NDArray[np.uint8]:
    """Smooth gradients with a thin red line, 33 x 47."""
    frame = np.zeros((33, 47, 3), dtype=np.uint8)
    frame[..., 1] = np.linspace(0, 255, 47)
    frame[..., 2] = np.linspace(255, 0, 33)[:, None]
    frame[16] = (255, 0, 0)
    return frame


def decoded(data: bytes) -> tuple[str | None, NDArray[np.uint8]]:
    with Image.open(io.BytesIO(data)) as picture:
        return picture.format, np.asarray(picture)


def test_png_is_lossless(frame: NDArray[np.uint8]) -> None:
    kind, pixels = decoded(encode_picture(frame, "png"))
    assert kind == "PNG"
    np.testing.assert_array_equal(pixels, frame)


@pytest.mark.parametrize(("kind", "mean_error"), [("jpeg", 2.0), ("webp", 8.0)])
def test_lossy_formats_stay_close(frame: NDArray[np.uint8], kind: PictureFormat, mean_error: float) -> None:
    name, pixels = decoded(encode_picture(frame, kind))
    assert name == kind.upper()
    assert np.abs(pixels.astype(int) - frame).mean() < mean_error


def test_a_thin_line_keeps_its_colour_in_jpeg(frame: NDArray[np.uint8]) -> None:
    _, pixels = decoded(encode_picture(frame, "jpeg"))
    assert np.abs(pixels[16].astype(int) - (255, 0, 0)).mean() < 12


@pytest.mark.parametrize("kind", ["jpeg", "webp"])
def test_quality_sets_the_size(frame: NDArray[np.uint8], kind: PictureFormat) -> None:
    assert len(encode_picture(frame, kind, quality=10)) < len(encode_picture(frame, kind, quality=100))


@pytest.mark.parametrize(
    "wrong", [np.zeros((4, 4, 3), np.float32), np.zeros((1, 4, 4, 3), np.uint8), np.zeros((4, 4, 4), np.uint8)]
)
def test_another_array_is_refused(wrong: NDArray[np.uint8]) -> None:
    with pytest.raises(ValueError, match=r"expected uint8 \[height, width, 3\]"):
        encode_picture(wrong, "png")
