"""Latent frames that a picture or clip determines: the model sees them without noise and leaves them as they are."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from torch import Tensor

from cosmos3_models import GenerationParams, InvalidInput
from cosmos3_models.checkpoint.folder import Checkpoint
from cosmos3_models.checkpoint.loading import load_transformer
from cosmos3_models.sampling.clean_frames import CleanFrames
from cosmos3_models.sampling.denoise import VideoDenoiser, draw_noise
from cosmos3_models.shapes import LatentGrid
from cosmos3_models.text.prompt import PromptIds
from cosmos3_models.transformer.generation_tower import Condition, Streams

CPU = torch.device("cpu")
FRAMES = 5
IDS = PromptIds(np.arange(5, 15), np.arange(5, 9))


@pytest.fixture(scope="module")
def denoiser(tiny_checkpoint: Path) -> VideoDenoiser:
    checkpoint = Checkpoint.open(tiny_checkpoint)
    return VideoDenoiser(load_transformer(checkpoint, CPU, torch.float32), checkpoint.scheduler, checkpoint.sound)


def params(**fields: Any) -> GenerationParams:
    return GenerationParams(
        **{"prompt": "x", "height": 48, "width": 80, "num_frames": 17, "num_inference_steps": 6} | fields
    )


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def condition(denoiser: VideoDenoiser, sound_frames: int | None = None) -> Condition:
    return denoiser.transformer.condition(torch.arange(9)[None], LatentGrid(FRAMES, 3, 5), 24.0, sound_frames)


@pytest.mark.parametrize(
    ("indexes", "schedule", "guidance_scale"),
    [((0,), "flow", 6.0), ((0, 1), "karras", 6.0), ((0, 3), "phyai", 6.0), ((4,), "checkpoint", 1.0)],
)
def test_clean_frames_come_out_bit_for_bit(
    denoiser: VideoDenoiser, indexes: tuple[int, ...], schedule: str, guidance_scale: float
) -> None:
    given = random(1, 8, max(indexes) + 1, 3, 5)
    asked = params(generate_sound=True, sigma_schedule=schedule, guidance_scale=guidance_scale)
    made = denoiser(IDS, asked, clean=CleanFrames(given, indexes))
    assert torch.equal(made.video[:, :, list(indexes)], given[:, :, list(indexes)])
    noisy = [index for index in range(FRAMES) if index not in indexes]
    assert not torch.equal(made.video[:, :, noisy], denoiser(IDS, asked).video[:, :, noisy]), "others attend to them"


def test_every_step_starts_from_the_clean_frames(denoiser: VideoDenoiser, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Streams] = []
    generation = denoiser.transformer.generation
    forward = generation.forward
    monkeypatch.setattr(generation, "forward", lambda streams, *rest: seen.append(streams) or forward(streams, *rest))
    given = random(1, 8, 2, 3, 5)
    denoiser(IDS, params(), clean=CleanFrames(given, (0, 1)))
    assert len(seen) == 12
    assert all(torch.equal(streams.video[:, :, :2], given) for streams in seen)
    assert not any(torch.equal(streams.video[:, :, 2:], seen[0].video[:, :, 2:]) for streams in seen[2:])


def test_noise_is_drawn_for_clean_frames_too(denoiser: VideoDenoiser) -> None:
    noise = draw_noise(denoiser.latent_shapes(params()), 42)
    start = CleanFrames(random(1, 8, 3, 3, 5), (0, 2)).put_into(noise)
    assert torch.equal(start.video[:, :, [1, 3, 4]], noise.video[:, :, [1, 3, 4]])
    assert start.clean is not None
    assert start.clean.tolist() == [True, False, True, False, False]


@pytest.mark.parametrize("shape", [(1, 8, 1, 3, 5), (1, 8, 2, 3, 4), (1, 4, 2, 3, 5), (2, 8, 2, 3, 5)])
def test_clean_frames_of_another_size_are_refused(denoiser: VideoDenoiser, shape: tuple[int, ...]) -> None:
    with pytest.raises(InvalidInput, match=r"^clean latents: got .*, expected \(1, 8, '2 or more', 3, 5\)"):
        denoiser(IDS, params(), clean=CleanFrames(torch.zeros(shape), (0, 1)))


def test_the_noise_level_is_said_of_noisy_tokens_alone(denoiser: VideoDenoiser) -> None:
    tower = denoiser.transformer.generation
    streams = Streams(random(1, 8, FRAMES, 3, 5), random(1, 4, 6), torch.tensor([True, False, False, True, False]))
    tokens = 2 * 3  # of a latent frame of 3 x 5
    noisy = tower._noisy(streams, torch.zeros(1, FRAMES * tokens + 6, 64))
    assert noisy is not None
    assert noisy.flatten().tolist() == [*[0] * 6, *[1] * 12, *[0] * 6, *[1] * 6, *[1] * 6]
    at_once = [tower(streams, step, condition(denoiser, 6)) for step in (10, 900)]
    assert not at_once[0].video[:, :, [0, 3]].any(), "the velocity of a clean frame"
    assert not torch.equal(at_once[0].video, at_once[1].video)
    everything = streams._replace(sound=None, clean=torch.ones(FRAMES, dtype=torch.bool))
    one, other = (hidden(denoiser, everything, step) for step in (10, 900))
    assert torch.equal(one, other), "without noise no token knows the noise level"


def hidden(denoiser: VideoDenoiser, streams: Streams, timestep: int) -> Tensor:
    """What the tower's last norm sees."""
    seen: list[Tensor] = []
    tower = denoiser.transformer.generation
    handle = tower.norm.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].clone()))
    tower(streams, timestep, condition(denoiser))
    handle.remove()
    return seen[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_mask_without_clean_frames_changes_no_bit(tiny_checkpoint: Path, dtype: torch.dtype) -> None:
    model = load_transformer(Checkpoint.open(tiny_checkpoint), CPU, dtype)
    of_text = model.condition(torch.arange(9)[None], LatentGrid(FRAMES, 3, 5), 24.0, None)
    streams = Streams(random(1, 8, FRAMES, 3, 5))
    masked = streams._replace(clean=torch.zeros(FRAMES, dtype=torch.bool))
    assert torch.equal(model(streams, 500, of_text).video, model(masked, 500, of_text).video)


def test_a_batch_may_have_clean_frames_of_its_own_in_every_element(denoiser: VideoDenoiser) -> None:
    clean = torch.tensor([[True, False, False, False, False], [False] * 5, [True, True, False, False, True]])
    streams = Streams(random(3, 8, FRAMES, 3, 5), random(3, 4, 6), clean)
    timesteps = torch.tensor([900.0, 500.0, 20.0])
    of_text = condition(denoiser, 6)
    batched = Condition([type(kv)(*(x.expand(3, -1, -1, -1) for x in kv)) for kv in of_text.text], of_text.positions)
    got = denoiser.transformer.generation(streams, timesteps[:, None, None], batched)
    for row, timestep in enumerate((900, 500, 20)):
        alone = Streams(*(stream[row : row + 1] for stream in streams.present), clean[row])
        expected = denoiser.transformer(alone, timestep, of_text)
        for ours, theirs in zip(got.present, expected.present, strict=True):
            assert tiny.relative_error(ours[row : row + 1].detach(), theirs) <= 1e-5
