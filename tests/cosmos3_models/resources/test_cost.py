"""Operations counted from the configs, against PyTorch's counter over the modules and against Nano's known figures."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import nano
from cosmos3_models import Cosmos3Pipeline, GenerationParams
from cosmos3_models.checkpoint.configs import SchedulerConfig, SoundDecoderConfig, VideoVAEConfig
from cosmos3_models.checkpoint.folder import Checkpoint
from cosmos3_models.checkpoint.loading import load_video_encoder
from cosmos3_models.errors import InvalidInput
from cosmos3_models.params import GenerationDefaults
from cosmos3_models.references import ReferenceKind
from cosmos3_models.resources.cost import (
    pass_flops,
    reference_flops,
    request_flops,
    sound_decode_flops,
    step_flops,
    text_flops,
    video_decode_flops,
    video_encode_flops,
)
from cosmos3_models.sampling.denoise import draw_noise
from cosmos3_models.shapes import LatentGrid

PROMPT_TOKENS = (40, 25)
IMAGE = (1, 48, 80)
SIZES = [(13, 48, 80), (9, 80, 112), (21, 64, 64)]
NANO = Checkpoint(
    Path("nano"),
    nano.transformer_config(36),
    VideoVAEConfig.model_validate(nano.VIDEO_VAE),
    SoundDecoderConfig.model_validate(nano.SOUND),
    SchedulerConfig.model_validate(nano.SCHEDULER),
    GenerationDefaults(),
)
NANO_PROMPT_TOKENS = (54, 2812)  # a short prompt and the default negative one
LARGE = GenerationParams(prompt="x")
SMALL = GenerationParams(prompt="x", height=480, width=832, num_frames=49)


@pytest.fixture(scope="module")
def pipeline(tiny_checkpoint: Path) -> Cosmos3Pipeline:
    return Cosmos3Pipeline.from_pretrained(tiny_checkpoint, device="cpu")


def counted(action: Callable[[], Any]) -> int:
    """What PyTorch counts, with attention as the two products that it is."""
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        action()
    return counter.get_total_flops()


def params(size: tuple[int, int, int], **fields: Any) -> GenerationParams:
    frames, height, width = size
    return GenerationParams(prompt="x", num_frames=frames, height=height, width=width, **fields)


@pytest.mark.parametrize(
    ("size", "sound"), [(IMAGE, False), *((size, sound) for size in SIZES for sound in (False, True))], ids=str
)
def test_a_step_and_its_text_are_counted_as_pytorch_counts_them(
    pipeline: Cosmos3Pipeline, size: tuple[int, int, int], sound: bool
) -> None:
    asked = params(size, generate_sound=sound)
    transformer = pipeline.denoiser.transformer
    noise = draw_noise(pipeline.denoiser.latent_shapes(asked), seed=0)
    frames = None if noise.sound is None else noise.sound.shape[2]
    prompts = [torch.zeros(1, tokens, dtype=torch.int64) for tokens in PROMPT_TOKENS]
    conditions: list[Any] = []
    grid = LatentGrid(*noise.video.shape[2:])
    text = counted(lambda: conditions.extend(transformer.conditions(prompts, grid, asked.fps, frames)))
    step = counted(lambda: [transformer(noise, 500, condition) for condition in conditions])
    flops = request_flops(pipeline.checkpoint, asked, PROMPT_TOKENS)
    assert (flops.text, flops.step) == (text, step)
    assert step_flops(pipeline.checkpoint, asked, PROMPT_TOKENS) == step


@pytest.mark.parametrize("size", [IMAGE, *SIZES], ids=str)
def test_decoding_is_counted_as_pytorch_counts_it(
    pipeline: Cosmos3Pipeline, size: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)  # the counter knows no call of oneDNN
    assert pipeline.sound_decoder is not None
    asked = params(size).model_copy(update={"generate_sound": True})  # of an image as well, for the formula
    latents = draw_noise(pipeline.denoiser.latent_shapes(asked), seed=0)
    video = counted(lambda: list(pipeline.video_decoder(latents.video)))
    sound = counted(lambda: pipeline.sound_decoder(latents.sound))  # type: ignore[misc]
    silent = asked.model_copy(update={"generate_sound": False})
    flops = request_flops(pipeline.checkpoint, silent, PROMPT_TOKENS).decode
    assert flops == pytest.approx(video, rel=0.01), "but for sums over the weights of each upsampler"
    assert request_flops(pipeline.checkpoint, asked, PROMPT_TOKENS).decode == flops + sound


@pytest.mark.parametrize("size", [(1, 48, 80), (5, 16, 48), (13, 80, 112)], ids=str)
def test_encoding_is_counted_as_pytorch_counts_it(
    pipeline: Cosmos3Pipeline, size: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)  # the counter knows no call of oneDNN
    encoder = load_video_encoder(pipeline.checkpoint, torch.device("cpu"), torch.float32)
    encoded = counted(lambda: encoder.latents(torch.zeros(1, 3, *size)))
    assert video_encode_flops(pipeline.checkpoint.video_vae, LatentGrid.of_video(*size)) == encoded


@pytest.mark.parametrize(
    ("kind", "fields", "frames"),
    [
        ("image", {}, 1),
        ("video", {}, 5),
        ("video", {"condition_frame_indexes_vision": (0, 3)}, 13),
        ("image", {"condition_frame_indexes_vision": (2,)}, 9),
    ],
)
def test_only_the_frames_are_encoded_that_clean_latents_depend_on(
    kind: ReferenceKind, fields: dict[str, Any], frames: int
) -> None:
    asked = LARGE.model_copy(update=fields)
    expected = video_encode_flops(NANO.video_vae, LatentGrid.of_video(frames, asked.height, asked.width))
    assert reference_flops(NANO, asked, kind) == expected > 0


def test_a_prompt_alone_costs_its_own_pass_only(pipeline: Cosmos3Pipeline) -> None:
    asked = params(SIZES[0])
    both, alone = (step_flops(pipeline.checkpoint, asked, tokens) for tokens in ((40, 40), (40,)))
    assert both == 2 * alone


def test_sound_of_a_checkpoint_without_sound_is_refused(pipeline: Cosmos3Pipeline) -> None:
    silent = replace(pipeline.checkpoint, sound=None)
    with pytest.raises(InvalidInput, match="generate_sound"):
        step_flops(silent, params(SIZES[0], generate_sound=True), PROMPT_TOKENS)


def test_nano_costs_what_is_known_of_it() -> None:
    """Counted by hand over the published architecture, at 720x1280x189 with sound off, in units of 1e12."""
    config = NANO.transformer
    assert pass_flops(config, 44_160, 0, 54) == pytest.approx((613.6 + 1151.6) * 1e12, rel=1e-3)
    assert pass_flops(config, 44_160, 0, 2812) == pytest.approx((613.6 + 1223.5) * 1e12, rel=1e-3)
    assert step_flops(NANO, LARGE, NANO_PROMPT_TOKENS) == pytest.approx(3602e12, rel=1e-3)
    assert step_flops(NANO, SMALL, NANO_PROMPT_TOKENS) == pytest.approx(180e12, rel=1e-2)
    assert text_flops(config, 2812) == pytest.approx(41.4e12, rel=0.03)  # with a mask
    assert video_encode_flops(NANO.video_vae, LatentGrid.of_video(1, 720, 1280)) == pytest.approx(4.3e12, rel=0.02)
    assert video_encode_flops(NANO.video_vae, LatentGrid.of_video(189, 720, 1280)) == pytest.approx(611e12, rel=0.02)
    assert sound_decode_flops(NANO.sound, 197) == pytest.approx(5.63e12, rel=0.01)  # type: ignore[arg-type]
    # Counted over another implementation, whose upsampling convolves after doubling: nine taps in place of four.
    grid = LatentGrid.of_video(189, 720, 1280)
    assert 0.75 * 3.211e15 < video_decode_flops(NANO.video_vae, grid) < 3.211e15


def test_a_large_step_costs_twenty_small_ones_and_not_the_nine_of_its_pixels() -> None:
    large, small = (step_flops(NANO, asked, NANO_PROMPT_TOKENS) for asked in (LARGE, SMALL))
    assert 19 < large / small < 21  # 5.31 s against 0.28 s were measured
    assert LARGE.pixel_frames / SMALL.pixel_frames == pytest.approx(8.9, rel=0.01)
