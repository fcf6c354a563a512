"""The video encoder against diffusers' on the same weights and pictures."""

import itertools
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from diffusers import AutoencoderKLWan
from numpy.typing import NDArray
from torch import Tensor

from cosmos3_models.autoencoders.frames import to_pixels
from cosmos3_models.autoencoders.video_encoder import WanVideoEncoder
from cosmos3_models.checkpoint.folder import Checkpoint
from cosmos3_models.checkpoint.loading import load_video_encoder
from cosmos3_models.shapes import LatentGrid

CPU = torch.device("cpu")
Frames = NDArray[np.uint8]


@pytest.fixture(scope="module")
def encoder(tiny_checkpoint: Path) -> WanVideoEncoder:
    return load_video_encoder(Checkpoint.open(tiny_checkpoint), CPU, torch.float32)


@cache
def reference(folder: Path) -> AutoencoderKLWan:
    with tiny.quiet_reference():
        return AutoencoderKLWan.from_pretrained(folder / "vae")


def pictures(frames: int, height: int, width: int) -> Frames:
    return np.random.RandomState(frames + height + width).randint(0, 256, (frames, height, width, 3), dtype=np.uint8)


def portions(frames: Frames, sizes: list[int]) -> Iterator[Frames]:
    ends = list(itertools.accumulate(sizes))
    assert ends[-1] == len(frames)
    return (frames[end - size : end] for size, end in zip(sizes, ends, strict=True))


def expected_latents(folder: Path, frames: Frames) -> Tensor:
    """As the pipeline of diffusers takes them: the mode, less the mean, over the spread."""
    vae = reference(folder)
    with torch.no_grad():
        mode = vae.encode(to_pixels(torch.tensor(frames))).latent_dist.mode()
    mean, std = (torch.tensor(v).view(1, -1, 1, 1, 1) for v in (vae.config.latents_mean, vae.config.latents_std))
    return (mode - mean) / std


@pytest.mark.parametrize("size", [(80, 112), (16, 48), (48, 16), (64, 64)], ids=str)
@pytest.mark.parametrize("frames", [1, 5, 9])
def test_latents_equal_those_of_diffusers(
    tiny_checkpoint: Path, encoder: WanVideoEncoder, frames: int, size: tuple[int, int]
) -> None:
    given = pictures(frames, *size)
    got = encoder([given])
    grid = LatentGrid.of_video(frames, *size)
    assert got.shape == (1, tiny.LATENT_CHANNELS, grid.frames, grid.height, grid.width)
    assert got.dtype == torch.float32
    assert tiny.relative_error(got, expected_latents(tiny_checkpoint, given)) <= 1e-5


@pytest.mark.parametrize("chunk", [1, 2, 3, 4, 8])
def test_any_chunk_size_gives_the_same_latents(encoder: WanVideoEncoder, chunk: int) -> None:
    given = pictures(17, 48, 32)
    assert tiny.relative_error(encoder([given], chunk), encoder([given])) <= 1e-6


@pytest.mark.parametrize("sizes", [[1] * 17, [17], [1, 4, 4, 8], [5, 12], [2, 3, 7, 5], [0, 16, 0, 1]], ids=str)
def test_any_portions_give_the_same_bytes(encoder: WanVideoEncoder, sizes: list[int]) -> None:
    given = pictures(17, 32, 48)
    assert torch.equal(encoder(portions(given, sizes), 2), encoder([given], 2))


def test_pictures_are_taken_as_they_are_needed_and_not_kept(
    encoder: WanVideoEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    moments = WanVideoEncoder.moments

    def recorded(self: WanVideoEncoder, pixels: Tensor, history: object) -> Tensor:
        sizes.append(pixels.shape[2])
        return moments(self, pixels, history)  # type: ignore[arg-type]

    def one_by_one() -> Iterator[Frames]:
        for taken, frame in enumerate(pictures(21, 32, 32), 1):
            assert taken - sum(sizes) <= 8, "no more than a chunk waits"
            yield frame[None]

    monkeypatch.setattr(WanVideoEncoder, "moments", recorded)
    encoder(one_by_one(), 2)
    assert sizes == [1, 8, 8, 4]


def test_pixels_give_the_latents_of_their_pictures(encoder: WanVideoEncoder) -> None:
    given = pictures(9, 32, 48)
    pixels = to_pixels(torch.tensor(given))
    assert pixels.min() == -1 and pixels.max() == 1
    before = pixels.clone()
    assert torch.equal(encoder.latents(pixels), encoder([given]))
    assert torch.equal(pixels, before)


def test_a_latent_frame_depends_on_nothing_that_comes_later(encoder: WanVideoEncoder) -> None:
    """So the first few pictures alone give the first few latent frames."""
    given = pictures(13, 32, 32)
    whole, start = encoder([given], 1), encoder([given[:5]], 1)
    assert torch.equal(whole[:, :, :2], start)


def test_pictures_may_be_read_only(encoder: WanVideoEncoder) -> None:
    given = pictures(5, 32, 32)
    given.flags.writeable = False
    assert torch.equal(encoder([given]), encoder([given.copy()]))


@pytest.mark.parametrize("frames", [0, 2, 4, 8])
def test_another_number_of_pictures_is_refused(encoder: WanVideoEncoder, frames: int) -> None:
    given = pictures(frames, 32, 32)
    with pytest.raises(ValueError, match=f"got {frames} pictures, expected 4t - 3"):
        encoder([given])
    with pytest.raises(ValueError, match=f"got {frames} pictures, expected 4t - 3"):
        encoder.latents(torch.zeros(1, 3, frames, 32, 32))


@pytest.mark.parametrize("size", [(40, 32), (32, 8)], ids=str)
def test_another_size_is_refused(encoder: WanVideoEncoder, size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=rf"pictures of {size[1]}x{size[0]} pixels, expected multiples of 16"):
        encoder([pictures(1, *size)], 1)


def test_large_pictures_are_encoded_a_latent_frame_at_a_time(encoder: WanVideoEncoder) -> None:
    assert encoder.chunk_size(45, 80) == 1
    assert encoder.chunk_size(16, 16) == 2
    assert encoder.chunk_size(1, 1) == 8


def test_warming_up_encodes_both_kinds_of_chunk(encoder: WanVideoEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder.warm_up()
    sizes: list[int] = []
    monkeypatch.setattr(
        encoder.encoder, "forward", lambda x, _: sizes.append(x.shape[2]) or torch.zeros(1, 16, 1, 1, 1)
    )
    encoder.warm_up()
    assert sizes == [1, 4]


def test_the_encoder_works_in_bf16(encoder: WanVideoEncoder, tiny_checkpoint: Path) -> None:
    half = load_video_encoder(Checkpoint.open(tiny_checkpoint), CPU, torch.bfloat16)
    given = pictures(5, 32, 48)
    got = half([given])
    assert got.dtype == torch.float32
    assert tiny.relative_error(got, encoder([given])) <= 0.05
