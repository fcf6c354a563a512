"""Steps that reuse velocities, against a loop in fp64 that computes the same for velocities of a closed form."""

from collections.abc import Callable
from math import expm1, inf, log
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks import nano
from cosmos3_models import GenerationParams
from cosmos3_models.checkpoint.configs import SchedulerConfig
from cosmos3_models.checkpoint.folder import Checkpoint
from cosmos3_models.checkpoint.loading import load_transformer
from cosmos3_models.sampling.clean_frames import CleanFrames
from cosmos3_models.sampling.denoise import VideoDenoiser, denoise
from cosmos3_models.sampling.guided_velocity import GuidedVelocity
from cosmos3_models.sampling.plan import full_steps, passes_by_step
from cosmos3_models.sampling.schedules import make_schedule
from cosmos3_models.text.prompt import PromptIds
from cosmos3_models.transformer.generation_tower import Streams

SCHEDULER = SchedulerConfig.model_validate(nano.SCHEDULER)
IDS = PromptIds(np.arange(5, 15), np.arange(5, 9))
Array = NDArray[np.float64]
Velocity = Callable[[Any, float], Any]
"""At latents and a noise level."""


def test_the_plan_of_a_request_is_known_step_by_step() -> None:
    assert passes_by_step(4, 2) == (2, 2, 2, 2)
    assert passes_by_step(4, 1) == (1, 1, 1, 1)
    assert passes_by_step(14, 2, velocity_reuse=2) == (2, 2, 2, 2, 2, 2, 0, 2, 0, 2, 0, 2, 2, 2)
    assert passes_by_step(14, 1, velocity_reuse=3) == (1, 1, 1, 1, 1, 1, 0, 1, 0, 1, 0, 0, 1, 1)
    computed = [step for step, passes in enumerate(passes_by_step(35, 2, velocity_reuse=5)) if passes]
    assert computed == [0, 1, 2, 3, 4, 5, 7, 9, 12, 15, 19, 23, 28, 33, 34], "2 apart at first, and 5 at last"
    assert passes_by_step(8, 2, guidance_reuse=3) == (2, 2, 1, 2, 1, 1, 2, 1)
    assert passes_by_step(14, 2, 2, 2) == (2, 2, 2, 1, 2, 1, 0, 2, 0, 1, 0, 2, 1, 2)
    assert passes_by_step(14, 1, 2, 2) == passes_by_step(14, 1, 2), "nothing to reuse without guidance"
    for steps in range(1, 9):
        assert passes_by_step(steps, 2, 5) == (2,) * steps, "too few to go without any"
    assert passes_by_step(9, 2, 5).count(0) == 1


@pytest.mark.parametrize(
    ("velocity_reuse", "guidance_reuse", "passes"),
    [(0, 0, 70), (2, 0, 42), (3, 0, 34), (4, 0, 32), (5, 0, 30), (0, 2, 54), (5, 2, 24)],
)
def test_35_steps_take_as_many_passes_as_is_said(velocity_reuse: int, guidance_reuse: int, passes: int) -> None:
    plan = passes_by_step(35, 2, velocity_reuse, guidance_reuse)
    assert (len(plan), sum(plan)) == (35, passes)
    assert full_steps(plan, 2, 35) == passes / 2
    assert full_steps(plan, 2, 2.5) == 2.5
    progress = [full_steps(plan, 2, done / 4) for done in range(4 * 36)]
    assert progress == sorted(progress)


class ReferenceVelocity:
    """What the documentation says of the two fields, step by step."""

    def __init__(self, steps: int, scale: float, velocity_reuse: int, guidance_reuse: int) -> None:
        self.steps, self.scale, self.longest, self.guided = steps, scale, velocity_reuse, guidance_reuse
        self.following = 0  # step that is computed
        self.known: list[tuple[float, Array]] = []
        self.difference: Array = np.zeros(())

    def __call__(self, i: int, sigma: float, x: Array) -> Array:
        if self.longest and 6 <= i < self.steps - 2 and i < self.following:
            (a0, v0), (a1, v1) = ((log((1 - s) / s), v) for s, v in self.known[-2:])
            return v1 + (v1 - v0) * (log((1 - sigma) / sigma) - a1) / (a1 - a0)
        if i >= 5:
            self.following = i + min(self.longest, (len(self.known) - 1) // 2)
        positive: Array = POSITIVE(x, sigma)
        if len(self.known) < 2 or not self.guided or len(self.known) % self.guided == 0:
            self.difference = positive - NEGATIVE(x, sigma)
        self.known.append((sigma, positive + (self.scale - 1) * self.difference))
        return self.known[-1][1]


def solved(sigmas: Array, x: Array, velocity: Callable[[int, float, Array], Array]) -> Array:
    """UniPC of order 2, its corrector's weights from the paper's linear system."""
    lambdas = [inf if s == 0 else log((1 - s) / s) for s in sigmas]
    data: list[Array] = []
    start, order, last = x, 1, len(sigmas) - 2
    for i, s in enumerate(sigmas[:-1]):
        now = x - s * velocity(i, s, x)
        if i == last:
            return now
        if i:
            h = lambdas[i] - lambdas[i - 1]
            b = expm1(-h)
            x = s / sigmas[i - 1] * start - (1 - s) * b * data[-1]
            if order == 1:
                x = x - (1 - s) * b * 0.5 * (now - data[-1])
            else:
                r, first = (lambdas[i - 2] - lambdas[i - 1]) / h, b / -h - 1
                older, newer = np.linalg.solve([[1, 1], [r, 1]], [first / b, 2 * (first / -h - 0.5) / b])
                x = x - (1 - s) * b * (older * (data[-2] - data[-1]) / r + newer * (now - data[-1]))
        data.append(now)
        order, start = min(2, len(data), last + 1 - i), x
        h = lambdas[i + 1] - lambdas[i]
        b = (1 - sigmas[i + 1]) * expm1(-h)
        x = sigmas[i + 1] / s * start - b * now
        if order == 2:
            x = x - b * 0.5 * (data[-2] - now) / ((lambdas[i - 1] - lambdas[i]) / h)
    raise AssertionError("the last step returns")


def linear_ode(pull: float, target: float, wave: float) -> Velocity:
    """A velocity that depends on the latents, linearly, and on the noise level, not so."""
    return lambda x, sigma: pull * (x - target) + wave * sigma * (1 - sigma)


POSITIVE, NEGATIVE = linear_ode(0.8, 0.5, 0.7), linear_ode(0.6, -0.3, 0.2)


def followed(steps: int, start: Streams, prompts: list[Velocity], plan: tuple[int, ...]) -> tuple[Streams, list[int]]:
    """What our loop makes of velocities, with guidance 3, and how many of them it asked for in each call."""
    schedule = make_schedule("flow", steps, 3.0, SCHEDULER)
    asked: list[int] = []

    def velocity(streams: Streams, _: int, count: int) -> list[Streams]:
        sigma = float(schedule.sigmas[len(asked)])
        asked.append(count)
        return [Streams(*(branch(x, sigma) for x in streams.present)) for branch in prompts[:count]]

    return denoise(velocity, start, schedule, GuidedVelocity(3.0, plan), lambda *_: None, lambda: False), asked


@pytest.mark.parametrize(("velocity_reuse", "guidance_reuse"), [(0, 0), (2, 0), (5, 0), (0, 2), (0, 3), (2, 2), (5, 2)])
@pytest.mark.parametrize("steps", [1, 2, 7, 20])
def test_every_plan_agrees_with_a_loop_in_fp64(steps: int, velocity_reuse: int, guidance_reuse: int) -> None:
    shapes = [(1, 2, 3, 2, 2), (1, 2, 5)]
    noise = [np.random.default_rng(seed).standard_normal(shape) for seed, shape in enumerate(shapes)]
    plan = passes_by_step(steps, 2, velocity_reuse, guidance_reuse)
    start = Streams(*(torch.tensor(x, dtype=torch.float32) for x in noise))
    got, asked = followed(steps, start, [POSITIVE, NEGATIVE], plan)
    assert tuple(asked) == plan
    sigmas = make_schedule("flow", steps, 3.0, SCHEDULER).sigmas.astype(np.float64)
    for ours, x in zip(got.present, noise, strict=True):
        expected = solved(sigmas, x, ReferenceVelocity(steps, 3.0, velocity_reuse, guidance_reuse))
        assert np.linalg.norm(ours.numpy() - expected) <= 1e-6 * np.linalg.norm(expected)


@pytest.mark.parametrize("velocity_reuse", [2, 5])
def test_a_velocity_that_is_linear_in_the_log_of_noise_over_data_is_extrapolated_exactly(velocity_reuse: int) -> None:
    start = Streams(torch.randn(1, 2, 3, 2, 2, generator=torch.Generator().manual_seed(0)))
    prompts: list[Velocity] = [
        lambda x, s: torch.full_like(x, 0.5 - 2 * log(s / (1 - s))),
        lambda x, s: torch.full_like(x, 1 + log(s / (1 - s))),
    ]
    exact, _ = followed(20, start, prompts, passes_by_step(20, 2))
    skipping, asked = followed(20, start, prompts, passes_by_step(20, 2, velocity_reuse))
    assert asked.count(0) > 5
    assert torch.allclose(skipping.video, exact.video, rtol=0, atol=2e-6)


def test_what_no_step_reuses_is_not_kept() -> None:
    branches = [[torch.ones(2)], [torch.zeros(2)]]
    kept = {}
    for plan in ((2, 2), (2, 0), (2, 1), (1, 1)):
        guided = GuidedVelocity(3.0, plan)
        guided(0.9, branches[: plan[0]])
        kept[plan] = (len(guided._computed), len(guided._differences))
    assert kept == {(2, 2): (0, 0), (2, 0): (1, 0), (2, 1): (0, 1), (1, 1): (0, 0)}


@pytest.fixture(scope="module")
def denoiser(tiny_checkpoint: Path) -> VideoDenoiser:
    checkpoint = Checkpoint.open(tiny_checkpoint)
    transformer = load_transformer(checkpoint, torch.device("cpu"), torch.float32)
    return VideoDenoiser(transformer, checkpoint.scheduler, checkpoint.sound)


def made(denoiser: VideoDenoiser, clean: Tensor | None = None, **fields: Any) -> Streams:
    """With sound, unless it is an image."""
    usual = {"prompt": "x", "height": 32, "width": 48, "num_frames": 9, "num_inference_steps": 12}
    params = GenerationParams(**usual | {"generate_sound": fields.get("num_frames") != 1} | fields)
    ids = IDS if params.guidance_scale > 1 else PromptIds(IDS.positive, None)
    return denoiser(ids, params, clean=None if clean is None else CleanFrames(clean, (0,)))


@pytest.mark.parametrize(
    "fields", [{}, {"guidance_scale": 1}, {"num_frames": 1}, {"num_inference_steps": 1}, {"num_inference_steps": 2}]
)
def test_reuse_changes_the_steps_that_go_without_the_model_alone(
    denoiser: VideoDenoiser, monkeypatch: pytest.MonkeyPatch, fields: dict[str, Any]
) -> None:
    passes: list[int] = []
    tower = denoiser.transformer.generation
    forward = tower.forward
    monkeypatch.setattr(tower, "forward", lambda *given: passes.append(1) or forward(*given))
    exact, reused = (made(denoiser, **fields, profile=profile) for profile in ("exact", "fast"))
    steps, prompts = fields.get("num_inference_steps", 12), 1 if fields.get("guidance_scale") == 1 else 2
    assert len(passes) == steps * prompts + sum(passes_by_step(steps, prompts, 5))
    for ours, theirs in zip(reused.present, exact.present, strict=True):
        assert torch.isfinite(ours).all()
        assert torch.equal(ours, theirs) is (steps < 3)


def test_clean_frames_stay_as_they_are_where_velocities_are_reused(denoiser: VideoDenoiser) -> None:
    clean = torch.randn(1, 8, 1, 2, 3, generator=torch.Generator().manual_seed(0))
    reused = made(denoiser, clean, profile="fast")
    assert torch.equal(reused.video[:, :, :1], clean)
    assert not torch.equal(reused.video, made(denoiser, clean).video)
