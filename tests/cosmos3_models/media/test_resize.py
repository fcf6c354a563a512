"""Cover-resize against diffusers, and the size that suits a picture."""

import math

import numpy as np
import pytest
import torch
from diffusers.pipelines.cosmos.pipeline_cosmos3_omni import _preprocess_conditioning_image
from numpy.typing import NDArray

from cosmos3_models.media.natural_size import natural_size
from cosmos3_models.media.resize import cover
from cosmos3_models.params import MAX_SIDE

SOURCES = [(1, 1), (7, 5), (5, 7), (1, 40), (40, 1), (64, 48), (97, 61), (720, 1280), (1279, 719), (3000, 4000)]
TARGETS = [(16, 16), (48, 80), (80, 48), (720, 1280), (544, 736)]


def noise(height: int, width: int, frames: int = 1) -> NDArray[np.uint8]:
    return np.random.default_rng(height * 7 + width).integers(0, 256, (frames, height, width, 3), dtype=np.uint8)


def by_diffusers(frame: NDArray[np.uint8], height: int, width: int) -> torch.Tensor:
    return _preprocess_conditioning_image(frame, height, width)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("source", SOURCES)
def test_equals_diffusers_bit_for_bit(source: tuple[int, int], target: tuple[int, int]) -> None:
    if max(source) / min(source) * max(target) > 4096:
        target = (16, 48)  # a thin picture becomes large before it is cut
    frames = noise(*source)
    ours = cover(frames, *target)
    assert ours.dtype == np.uint8
    assert ours.shape == (1, *target, 3)
    theirs = by_diffusers(frames[0], *target)
    assert torch.equal(torch.from_numpy(ours).permute(0, 3, 1, 2).float() / 127.5 - 1.0, theirs)


def test_sizes_that_scale_to_a_fraction_of_a_pixel_more_than_the_target() -> None:
    """49 * (720 / 49) is 720.0000000000001 in float64, so the reference cuts one pixel off. So must we."""
    sides = [side for side in range(1, 200) if math.ceil(side * (48 / side)) > 48]
    assert sides
    for side in sides:
        frames = noise(side, side)
        ours = torch.from_numpy(cover(frames, 48, 48)).permute(0, 3, 1, 2).float() / 127.5 - 1.0
        assert torch.equal(ours, by_diffusers(frames[0], 48, 48)), side


def test_frames_are_independent() -> None:
    frames = noise(31, 50, frames=3)
    np.testing.assert_array_equal(
        cover(frames, 32, 48), np.concatenate([cover(frames[i : i + 1], 32, 48) for i in range(3)])
    )


def test_frames_that_have_the_size_stay_as_they_are() -> None:
    frames = noise(48, 80, frames=2)
    np.testing.assert_array_equal(cover(frames, 48, 80), frames)


def test_the_centre_is_kept() -> None:
    frames = np.zeros((1, 32, 96, 3), np.uint8)
    frames[:, :, 32:64] = 255
    assert (cover(frames, 32, 32) == 255).all()


def test_read_only_frames_are_taken() -> None:
    frames = noise(31, 50)
    frames.flags.writeable = False
    assert cover(frames, 16, 16).flags.writeable


@pytest.mark.parametrize(
    ("picture", "area", "expected"),
    [
        ((1920, 1080), 1280 * 720, (1280, 720)),
        ((1080, 1920), 1280 * 720, (720, 1280)),
        ((1, 1), 1280 * 720, (960, 960)),
        ((4000, 3000), 1280 * 720, (1104, 832)),  # NVIDIA's own size for 4:3 at this area
        ((3000, 4000), 1280 * 720, (832, 1104)),
        ((64, 64), 64 * 64, (64, 64)),
        ((1, 100), 1280 * 720, (96, 4096)),
        ((10**6, 1), 1280 * 720, (4096, 16)),
        ((1, 1), 10**9, (4096, 4096)),
        ((5, 4), 100, (16, 16)),
    ],
)
def test_natural_size(picture: tuple[int, int], area: int, expected: tuple[int, int]) -> None:
    assert natural_size(*picture, area) == expected


def test_natural_sizes_keep_ratio_and_limits() -> None:
    random = np.random.default_rng(0)
    for _ in range(2000):
        width, height = (int(side) for side in random.integers(1, 8000, 2))
        area = int(random.integers(256, 4096 * 4096))
        ours = natural_size(width, height, area)
        assert all(side % 16 == 0 and 16 <= side <= MAX_SIDE for side in ours)
        assert ours[0] * ours[1] <= area
        if area > 512 * 512 and 1 / 4 < width / height < 4 and max(ours) < MAX_SIDE:
            assert abs(math.log(ours[0] / ours[1] * height / width)) < 0.06, (width, height, area, ours)
            assert ours[0] * ours[1] > 0.85 * area


def test_a_size_that_suits_already_is_its_own() -> None:
    for width in range(16, 1600, 48):
        for height in range(16, 1600, 48):
            assert natural_size(width, height, width * height) == (width, height)
