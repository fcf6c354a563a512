"""Pictures and clips that a caller in this process hands over, in each of their forms."""

from pathlib import Path

import media_files
import numpy as np
import pytest
from PIL import Image

from cosmos3_models import InvalidInput
from cosmos3_models.media.sources import Source, source_of

FILM = media_files.film(9)
PIXELS = FILM[3]


def taken(source: Source, count: int, keep: str = "first") -> np.ndarray:
    return np.concatenate(list(source.frames(count, keep)))


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    paths = {"image": tmp_path / "no suffix", "video": tmp_path / "x.png"}  # what a file is does not depend on its name
    paths["image"].write_bytes(media_files.picture(Image.fromarray(PIXELS), "PNG"))
    paths["video"].write_bytes(media_files.lossless(FILM))
    return paths


def test_a_picture_is_the_same_in_every_form(files: dict[str, Path]) -> None:
    for form in (PIXELS, Image.fromarray(PIXELS), files["image"], str(files["image"])):
        assert np.array_equal(taken(Source("image", form), 3), np.stack([PIXELS] * 3))


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK"])
def test_a_picture_of_pillow_is_read_as_its_file_is(tmp_path: Path, mode: str) -> None:
    picture = Image.fromarray(PIXELS).convert(mode)
    picture.getexif()[0x0112] = 6
    path = tmp_path / "picture"
    picture.save(path, "JPEG" if mode == "CMYK" else "PNG", exif=picture.getexif())
    with Image.open(path) as opened:
        from_pillow = taken(Source("image", opened), 1)
    assert from_pillow.shape == (1, PIXELS.shape[1], PIXELS.shape[0], 3), "it is turned upright"
    assert np.array_equal(from_pillow, taken(Source("image", path), 1))


@pytest.mark.parametrize(
    ("keep", "count", "indexes"),
    [("first", 5, [0, 1, 2, 3, 4]), ("last", 5, [4, 5, 6, 7, 8]), ("last", 11, [*range(9), 8, 8])],
)
def test_a_clip_is_the_same_in_every_form(files: dict[str, Path], keep: str, count: int, indexes: list[int]) -> None:
    for form in (FILM, files["video"]):
        assert np.array_equal(taken(Source("video", form), count, keep), FILM[indexes])


@pytest.mark.parametrize(
    ("kind", "pixels"),
    [
        ("image", FILM),
        ("image", PIXELS / 255),
        ("image", PIXELS[..., :1]),
        ("image", "video"),
        ("image", [1, 2]),
        ("video", PIXELS),
        ("video", FILM[:0]),
        ("video", "image"),
        ("video", Image.fromarray(PIXELS)),
    ],
)
def test_what_is_no_picture_or_no_clip_is_refused(files: dict[str, Path], kind: str, pixels: object) -> None:
    media = files[pixels] if isinstance(pixels, str) else pixels
    with pytest.raises(InvalidInput, match=r"^input_reference: got .*, expected .*, because \w"):
        taken(Source(kind, media), 1)  # type: ignore[arg-type]


def test_a_picture_and_a_clip_at_once_are_refused() -> None:
    assert source_of(None, None) is None
    with pytest.raises(InvalidInput, match=r"^input_reference: got 'a picture and a clip'"):
        source_of(PIXELS, FILM)
