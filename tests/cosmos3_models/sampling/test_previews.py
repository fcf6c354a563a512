"""What previews show: at which steps, which latent frames, and how near to the video."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks import nano
from cosmos3_models import Cosmos3Pipeline, GenerationParams
from cosmos3_models.checkpoint.configs import SchedulerConfig
from cosmos3_models.sampling.denoise import denoise
from cosmos3_models.sampling.guided_velocity import GuidedVelocity
from cosmos3_models.sampling.plan import passes_by_step
from cosmos3_models.sampling.previews import Previews, clean_estimate, preview_steps, snippets
from cosmos3_models.sampling.schedules import make_schedule
from cosmos3_models.transformer.generation_tower import Streams

SCHEDULER = SchedulerConfig.model_validate(nano.SCHEDULER)
PARAMS = GenerationParams(prompt="x", num_frames=17, height=32, width=48, num_inference_steps=8, generate_sound=True)


@pytest.mark.parametrize(
    ("previews", "steps", "shown"),
    [(0, 35, []), (1, 35, [18]), (3, 35, [9, 18, 26]), (8, 4, [1, 2, 3]), (3, 1, []), (3, 200, [50, 100, 150])],
)
def test_previews_are_spread_evenly_and_none_comes_after_the_last_step(
    previews: int, steps: int, shown: list[int]
) -> None:
    assert sorted(preview_steps(previews, steps)) == shown


@pytest.mark.parametrize(
    ("frames", "moments"),
    [(1, [0]), (2, [1]), (3, [1, 2]), (5, [1, 2, 3, 4]), (9, [1, 3, 6, 8]), (48, [1, 16, 32, 47])],
)
def test_a_preview_shows_moments_from_the_beginning_to_the_end(frames: int, moments: list[int]) -> None:
    latents = torch.randn(1, 3, frames, 2, 4)
    taken = snippets(latents)
    assert taken.shape == (len(moments), 3, min(2, frames), 2, 4)
    for snippet, moment in zip(taken, moments, strict=True):
        assert torch.equal(snippet, latents[0, :, max(0, moment - 1) : moment + 1])


def test_the_estimate_is_exact_on_a_straight_path() -> None:
    data, noise = torch.randn(2, 1, 4, 3, 2, 2, dtype=torch.float64)
    for sigma in (0.1, 0.5, 0.98):
        torch.testing.assert_close(clean_estimate((1 - sigma) * data + sigma * noise, noise - data, sigma), data)


def test_a_run_shows_the_guided_estimate_of_each_step_with_the_clean_frames() -> None:
    """Both prompts pull straight towards data of their own, so each estimate is known."""
    wanted, unwanted, noise = (torch.randn(1, 2, 5, 2, 2) for _ in range(3))
    schedule = make_schedule("flow", 8, 3.0, SCHEDULER)
    clean = torch.tensor([True, False, False, False, False])
    start = Streams(noise, None, clean)
    sigmas: list[float] = []
    noisy: list[Tensor] = []

    def velocity(streams: Streams, _: int, count: int) -> list[Streams]:
        sigmas.append(float(schedule.sigmas[len(sigmas)]))
        noisy.append(streams.video)
        return [Streams((streams.video - data) / sigmas[-1]) for data in (wanted, unwanted)[:count]]

    shown: dict[int, Tensor] = {}
    previews = Previews(frozenset({2, 5}), lambda step, taken: shown.update({step: taken}))

    def run(*watched: Previews) -> Tensor:
        sigmas.clear()
        guided = GuidedVelocity(3.0, passes_by_step(8, 2))
        return denoise(velocity, start, schedule, guided, lambda *_: None, lambda: False, *watched).video

    made = run(previews)
    assert list(shown) == [2, 5]
    for taken in shown.values():
        expected = unwanted + 3 * (wanted - unwanted)
        expected[:, :, 0] = noise[:, :, 0]  # a clean frame stays what it is
        torch.testing.assert_close(taken, snippets(expected), rtol=1e-4, atol=1e-4)
    assert torch.equal(made, run()), "a run without previews gives the same bytes"


def test_the_pipeline_shows_moments_of_the_video_and_makes_the_same(tiny_checkpoint: Path) -> None:
    pipeline = Cosmos3Pipeline.from_pretrained(tiny_checkpoint, "cpu")
    shown: dict[int, NDArray[np.uint8]] = {}
    watched = PARAMS.model_copy(update={"previews": 3})
    made = pipeline(watched, on_preview=lambda step, moments: shown.update({step: moments}))
    assert {step: moments.shape for step, moments in shown.items()} == dict.fromkeys((2, 4, 6), (4, 32, 48, 3))
    plain: Any = pipeline(PARAMS)
    assert np.array_equal(made.frames, plain.frames)
    assert np.array_equal(made.waveform, plain.waveform)
    errors = [np.abs(moments[0].astype(float) - made.frames[4]).mean() for moments in shown.values()]
    assert errors == sorted(errors, reverse=True), "each one is nearer to the video than the one before"
