"""The demo's whole model on a GPU: with its kernels, and with the PyTorch that defines them.

Both round, in different places, so neither need equal the other. Each has a distance from fp32 on the CPU, and that of
the kernels must be no larger, but for ``SLACK``: rounding errors of tens of thousands of numbers have almost the same
length each time, and a kernel with a mistake is off by much more.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import numpy as np
import pytest
import torch
from torch import Tensor

from cosmos3_models import Cosmos3Pipeline, GenerationParams
from cosmos3_models.approximations import Approximation
from cosmos3_models.checkpoint.loading import load_video_encoder
from cosmos3_models.kernels import dispatch
from cosmos3_models.references import clean_frames
from cosmos3_models.sampling.clean_frames import CleanFrames
from cosmos3_models.sampling.denoise import draw_noise, velocity_function
from cosmos3_models.shapes import LatentGrid
from cosmos3_models.transformer.attention import HOPPER
from cosmos3_models.transformer.generation_tower import Condition, Streams

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]

PROMPT = "A large red ball bounces slowly on the floor."
SLACK = 1.25
STEPS = 4
TIMESTEP = 990
EXACT = Approximation()
MODES = {
    "bf16": EXACT,
    "fp8 linears": Approximation(fp8_linears=True),
    "fp8 attention": Approximation(fp8_attention=True),
    "fp8 both": Approximation(fp8_linears=True, fp8_attention=True),
}
# The largest distance from fp32: bf16 has 8 bits of mantissa and e4m3 4, and the layers enlarge what they round.
LARGEST = {"bf16": 0.03, "fp8": 0.2}


@cache
def loaded(device: str, offload_text: bool = False) -> Cosmos3Pipeline:
    """fp32 on the CPU, bf16 on a GPU."""
    return Cosmos3Pipeline.from_pretrained("demo", device, offload_text=offload_text)


@contextmanager
def definitions() -> Iterator[None]:
    """Run the PyTorch that defines the operations, on a GPU too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dispatch, "fused", lambda _: False)
        yield


def request(sound: bool = False, **fields: object) -> GenerationParams:
    defaults = loaded("cpu").checkpoint.defaults
    return defaults.params(prompt=PROMPT, generate_sound=sound, num_inference_steps=STEPS, **fields)


def conditions(pipeline: Cosmos3Pipeline, sound: bool) -> list[Condition]:
    params = request(sound)
    shapes = pipeline.denoiser.latent_shapes(params)
    ids = pipeline.prompt_encoder.encode(params)
    prompts = [torch.tensor(text)[None] for text in (ids.positive, ids.negative) if text is not None]
    return pipeline.denoiser.transformer.conditions(
        prompts, LatentGrid(*shapes[0][2:]), params.fps, shapes[1][2] if sound else None
    )


def velocities(pipeline: Cosmos3Pipeline, sound: bool, mode: Approximation) -> list[Tensor]:
    """Of each prompt and stream, at ``TIMESTEP``."""
    transformer = pipeline.denoiser.transformer
    transformer.precision(EXACT)  # drops the fp8 weights, which another test may have made in another way
    noise = draw_noise(pipeline.denoiser.latent_shapes(request(sound)), seed=0)
    streams = Streams(*(stream.to(transformer.device) for stream in noise.present))
    found = velocity_function(transformer, conditions(pipeline, sound), mode)(streams, TIMESTEP, 2)
    return [stream.float().cpu() for branch in found for stream in branch.present]


@cache
def expected_velocities(sound: bool) -> list[Tensor]:
    return velocities(loaded("cpu"), sound, EXACT)


def decoded(device: str, latents: Tensor) -> Tensor:
    return torch.cat([pixels.cpu() for pixels in loaded(device).video_decoder(latents)], dim=2)


def distance(got: Tensor, expected: Tensor) -> float:
    return float((got.float() - expected.float()).norm() / expected.float().norm())


@pytest.mark.parametrize("sound", [False, True], ids=["video", "video and sound"])
@pytest.mark.parametrize("mode", MODES)
def test_velocities_are_as_near_to_fp32_as_the_definitions_are(mode: str, sound: bool) -> None:
    fp8 = "fp8" in mode
    if fp8 and torch.cuda.get_device_capability() < HOPPER:
        pytest.skip("needs the fp8 tensor cores of a GPU")
    pipeline = loaded("cuda")
    expected = expected_velocities(sound)
    fused = velocities(pipeline, sound, MODES[mode])
    with definitions():
        plain = velocities(pipeline, sound, MODES[mode])
    for got, defined, exact in zip(fused, plain, expected, strict=True):
        assert distance(got, exact) <= SLACK * distance(defined, exact)
        assert distance(got, exact) <= LARGEST["fp8" if fp8 else "bf16"]


def test_keys_and_values_of_the_text_are_the_same_from_host_memory() -> None:
    resident, offloaded = (conditions(loaded("cuda", offload_text), True) for offload_text in (False, True))
    for one, other in zip(resident, offloaded, strict=True):
        for layer, (own, theirs) in enumerate(zip(one.text, other.text, strict=True)):
            assert torch.equal(own.key, theirs.key), layer
            assert torch.equal(own.value, theirs.value), layer


@pytest.mark.parametrize("sound", [False, True], ids=["video", "video and sound"])
def test_a_request_is_as_near_to_fp32_as_the_definitions_are(sound: bool) -> None:
    """Latents after several steps, then what both decoders make of the same latents."""
    params = request(sound)
    exact, fused = loaded("cpu")(params), loaded("cuda")(params)
    with definitions():
        plain = loaded("cuda")(params)
    assert distance(fused.video_latents, exact.video_latents) <= SLACK * distance(
        plain.video_latents, exact.video_latents
    )
    assert fused.frames.shape == exact.frames.shape
    if sound:
        assert fused.sound_latents is not None and plain.sound_latents is not None and exact.sound_latents is not None
        assert distance(fused.sound_latents, exact.sound_latents) <= SLACK * distance(
            plain.sound_latents, exact.sound_latents
        )
        assert fused.waveform is not None and np.isfinite(fused.waveform).all()


def test_decoded_pixels_are_as_near_to_fp32_as_the_definitions_are() -> None:
    latents = draw_noise(loaded("cpu").denoiser.latent_shapes(request()), seed=0).video
    exact, fused = (
        torch.cat([p.cpu() for p in loaded(device).video_decoder(latents)], 2) for device in ("cpu", "cuda")
    )
    with definitions():
        plain = torch.cat([p.cpu() for p in loaded("cuda").video_decoder(latents)], 2)
    assert distance(fused, exact) <= SLACK * distance(plain, exact)


def test_encoded_pictures_are_as_near_to_fp32_as_the_definitions_are() -> None:
    checkpoint = loaded("cpu").checkpoint
    pictures = np.random.RandomState(0).randint(0, 256, (9, 80, 112, 3), dtype=np.uint8)
    exact = load_video_encoder(checkpoint, torch.device("cpu"), torch.float32)([pictures])
    for dtype, largest in ((torch.float32, 2e-3), (torch.bfloat16, LARGEST["bf16"])):
        encoder = load_video_encoder(checkpoint, torch.device("cuda"), dtype)
        fused = encoder([pictures]).cpu()
        with definitions():
            plain = encoder([pictures]).cpu()
        assert distance(fused, exact) <= max(SLACK * distance(plain, exact), 1e-5)
        assert distance(fused, exact) <= largest


@pytest.mark.parametrize("frames", [1, 5], ids=["picture", "clip"])
def test_a_request_with_a_reference_is_as_near_to_fp32_as_the_definitions_are(frames: int) -> None:
    """The clean latents come from one encoder, so that all differences are the denoiser's."""
    params = request(True)
    pictures = loaded("cpu")(params).frames[:frames]  # noise would be far from all that the model knows
    encoder = load_video_encoder(loaded("cpu").checkpoint, torch.device("cpu"), torch.float32)
    clean = CleanFrames(encoder([pictures]), clean_frames(params, "image" if frames == 1 else "video"))
    ids = loaded("cpu").prompt_encoder.encode(params)
    exact, fused = (loaded(device).denoiser(ids, params, clean=clean) for device in ("cpu", "cuda"))
    with definitions():
        plain = loaded("cuda").denoiser(ids, params, clean=clean)
    chosen = list(clean.indexes)
    assert torch.equal(fused.video[:, :, chosen].cpu(), clean.latents[:, :, chosen]), "put back bit for bit"
    for got, defined, expected in zip(fused.present, plain.present, exact.present, strict=True):
        assert distance(got.cpu(), expected) <= SLACK * distance(defined.cpu(), expected)


def test_the_same_request_gives_the_same_bytes() -> None:
    one, other = (loaded("cuda")(request(True)) for _ in range(2))
    assert torch.equal(one.video_latents, other.video_latents)
    assert np.array_equal(one.frames, other.frames)
