"""Both decoders against diffusers' on the same weights and latents."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tiny
import torch
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_cosmos3_audio import Cosmos3AVAEAudioTokenizer
from safetensors.torch import load_file, save_file
from torch import Tensor

from cosmos3_models.autoencoders.frames import to_frames
from cosmos3_models.autoencoders.video_decoder import WanVideoDecoder
from cosmos3_models.checkpoint.folder import Checkpoint
from cosmos3_models.checkpoint.loading import load_sound_decoder, load_video_decoder
from cosmos3_models.checkpoint.tensor_files import FoldedWeightNorm, TensorFiles
from cosmos3_models.kernels import dispatch, pixel_ops

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def decoder(tiny_checkpoint: Path) -> WanVideoDecoder:
    return load_video_decoder(Checkpoint.open(tiny_checkpoint), CPU, torch.float32)


def random(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def pixels(decoder: WanVideoDecoder, latents: Tensor, chunk: int | None = None) -> Tensor:
    return torch.cat(list(decoder(latents, chunk)), dim=2)


@pytest.mark.parametrize("frames", [1, 2, 5])
def test_pixels_equal_those_of_diffusers(tiny_checkpoint: Path, decoder: WanVideoDecoder, frames: int) -> None:
    with tiny.quiet_reference():
        reference = AutoencoderKLWan.from_pretrained(tiny_checkpoint / "vae")
    latents = random(1, tiny.LATENT_CHANNELS, frames, 4, 3)
    mean, std = (
        torch.tensor(getattr(decoder.config, name)).view(1, -1, 1, 1, 1) for name in ("latents_mean", "latents_std")
    )
    with torch.no_grad():
        expected = (reference.decode(latents * std + mean).sample / 2 + 0.5).clamp(0, 1)
    got = pixels(decoder, latents)
    assert got.shape == (1, 3, 4 * frames - 3, 64, 48)
    assert tiny.relative_error(got, expected) <= 1e-5


@pytest.mark.parametrize("chunk", [1, 2, 3, 5, 6])
def test_any_chunk_size_gives_the_same_pixels(decoder: WanVideoDecoder, chunk: int) -> None:
    latents = random(1, tiny.LATENT_CHANNELS, 6, 3, 3)
    assert tiny.relative_error(pixels(decoder, latents, chunk), pixels(decoder, latents)) <= 1e-6


def test_chunks_come_one_by_one_and_bounded(decoder: WanVideoDecoder) -> None:
    sizes = [chunk.shape[2] for chunk in decoder(random(1, tiny.LATENT_CHANNELS, 6, 2, 2), 2)]
    assert sizes == [1, 8, 8, 4]
    large = decoder(random(1, tiny.LATENT_CHANNELS, 3, 32, 33))
    assert [next(large).shape[2], next(large).shape[2]] == [1, 4], "one latent frame at a time when it is large"


@pytest.mark.parametrize("frames", [1, 6])
def test_frames_are_the_pixels_in_order(decoder: WanVideoDecoder, frames: int) -> None:
    latents = random(1, tiny.LATENT_CHANNELS, frames, 2, 2)
    got = list(decoder.frames(latents))
    assert [len(chunk) for chunk in got] == [chunk.shape[2] for chunk in decoder(latents)]
    assert np.array_equal(np.concatenate(got), to_frames(pixels(decoder, latents)).numpy())


@pytest.mark.parametrize("size", [(3, 5), (1, 1)])
def test_phases_equal_doubling_and_convolving(size: tuple[int, int]) -> None:
    x, weight, bias = random(2, 6, *size).double(), random(4, 6, 3, 3).double(), random(4).double()
    doubled = torch.nn.functional.interpolate(x, scale_factor=2, mode="nearest-exact")
    expected = torch.nn.functional.conv2d(doubled, weight, bias, padding=1)
    phases = torch.nn.functional.conv2d(x, pixel_ops.phase_weights(weight).flatten(0, 2), padding=1)
    nothing = torch.zeros(1, 4, 2, *size, dtype=torch.float64)
    got = pixel_ops.merge_phases(phases, bias, nothing, time_factor=1, first=False)
    assert tiny.relative_error(got[0].transpose(0, 1), expected) <= 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_any_cpu_convolves_any_dtype(dtype: torch.dtype) -> None:
    """oneDNN alone has no fp64, and no bf16 on an x86-64 CPU without AVX-512."""
    x, weight = random(1, 4, 3, 5, 5), random(6, 4, 3, 3, 3)
    got = pixel_ops.convolve(x.to(dtype), weight.to(dtype), None, (0, 1, 1))
    expected = torch.nn.functional.conv3d(x, weight, padding=(0, 1, 1))
    assert got.dtype == dtype
    assert tiny.relative_error(got.float(), expected) <= (1e-2 if dtype == torch.bfloat16 else 1e-6)


@pytest.mark.parametrize(("batch", "layout", "taken"), [(1, True, True), (2, True, False), (1, False, False)])
def test_the_kernels_take_one_video_whose_channels_lie_together(
    monkeypatch: pytest.MonkeyPatch, batch: int, layout: bool, taken: bool
) -> None:
    calls: list[str] = []
    kernels = SimpleNamespace(add_bias_=lambda *_: calls.append("add_bias"), norm_silu=lambda *_: calls.append("norm"))
    monkeypatch.setattr(dispatch, "fused", lambda _: True)
    monkeypatch.setattr(dispatch, "kernels", lambda _: kernels)
    x = random(batch, 4, 2, 3, 5)
    x = x.contiguous(memory_format=torch.channels_last_3d) if layout else x
    pixel_ops.add_bias_(x, random(4), x)
    pixel_ops.norm_silu(x, None, random(4, 1, 1, 1), torch.empty_like(x))
    assert calls == (["add_bias", "norm"] if taken else [])


def test_the_memory_of_a_chunk_is_known_beforehand(decoder: WanVideoDecoder) -> None:
    none, one, two = (decoder.peak_bytes(chunk, 4, 6) for chunk in (0, 1, 2))
    assert 0 < none < one
    assert two - one == one - none
    assert decoder.peak_bytes(1, 8, 6) == 2 * one


def test_a_frame_depends_on_nothing_that_comes_later(decoder: WanVideoDecoder) -> None:
    latents = random(1, tiny.LATENT_CHANNELS, 4, 3, 3)
    changed = latents.clone()
    changed[:, :, 3] += 1
    before, after = pixels(decoder, latents), pixels(decoder, changed)
    assert torch.equal(before[:, :, :9], after[:, :, :9])
    assert not torch.equal(before[:, :, 9:], after[:, :, 9:])


def test_latents_are_left_as_they_were(decoder: WanVideoDecoder) -> None:
    latents = random(1, tiny.LATENT_CHANNELS, 2, 3, 3)
    copy = latents.clone()
    pixels(decoder, latents)
    assert torch.equal(latents, copy)


def test_pixels_round_to_the_nearest_of_256_levels() -> None:
    values = torch.tensor([0, 0.5 / 255, 1.5 / 255, 0.999, 1]).view(1, 1, 1, 1, 5).expand(1, 3, 1, 1, 5)
    assert to_frames(values)[0, 0, :, 0].tolist() == [0, 0, 2, 255, 255]


def test_the_waveform_equals_that_of_diffusers(tiny_checkpoint: Path) -> None:
    with tiny.quiet_reference():
        reference = Cosmos3AVAEAudioTokenizer.from_pretrained(tiny_checkpoint / "sound_tokenizer")
    latents = random(1, tiny.SOUND_CHANNELS, 7)
    with torch.no_grad():
        expected = reference.decode(latents)
    got = load_sound_decoder(Checkpoint.open(tiny_checkpoint), CPU, torch.float32)(latents)
    assert got.shape == (2, 7 * 1920)
    assert got.abs().max() < 1, "a clipped waveform would hide errors"
    assert tiny.relative_error(got, expected) <= 1e-5


def test_a_loud_waveform_is_clamped(tiny_checkpoint: Path) -> None:
    decoder = load_sound_decoder(Checkpoint.open(tiny_checkpoint), CPU, torch.float32)
    assert decoder(100 * random(1, tiny.SOUND_CHANNELS, 3)).abs().max() == 1


@pytest.mark.parametrize("spelling", ["parametrizations", "plain"])
def test_every_spelling_of_weight_norm_gives_the_same_weights(
    tiny_checkpoint: Path, tmp_path: Path, spelling: str
) -> None:
    folder = tiny_checkpoint / "sound_tokenizer"
    legacy = {k: v for file in sorted(folder.glob("*.safetensors")) for k, v in load_file(file).items()}
    respelt = {}
    for name, tensor in legacy.items():
        if spelling == "parametrizations":
            name = name.replace("weight_g", "parametrizations.weight.original0")
            respelt[name.replace("weight_v", "parametrizations.weight.original1")] = tensor
        elif name.endswith("weight_v"):
            gain = legacy[name.replace("weight_v", "weight_g")]
            respelt[name.replace("weight_v", "weight")] = torch._weight_norm(tensor, gain, 0)
        elif not name.endswith("weight_g"):
            respelt[name] = tensor
    save_file(respelt, tmp_path / "diffusion_pytorch_model.safetensors")
    original, read = FoldedWeightNorm(TensorFiles(folder)), FoldedWeightNorm(TensorFiles(tmp_path))
    assert set(original) == set(read)
    for name in original:
        assert read.shape(name) == tuple(original.read(name).shape)
        assert torch.allclose(read.read(name), original.read(name), atol=1e-7)
