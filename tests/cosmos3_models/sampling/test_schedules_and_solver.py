"""Noise schedules against published tables and diffusers; the solver against diffusers and a known solution."""

import math

import numpy as np
import pytest
import tiny
import torch
from diffusers import UniPCMultistepScheduler

from benchmarks import nano
from cosmos3_models.checkpoint.configs import SchedulerConfig
from cosmos3_models.sampling.schedules import make_schedule
from cosmos3_models.sampling.solver import UniPC

STEPS = [1, 2, 3, 4, 10, 35, 50, 200]
CONFIG = nano.SCHEDULER  # the published one
SCHEDULER = SchedulerConfig.model_validate(CONFIG)

# Sigmas of 4 steps at shift 10, as the systems print them.
TABLES = {
    "flow": ([0.99989992, 0.96761698, 0.90892547, 0.76899391, 0.0], [999, 967, 908, 768]),
    "phyai": ([0.99998999, 0.96772945, 0.90907437, 0.76920706, 0.0], [999, 967, 909, 769]),
    "karras": ([0.99502486, 0.97363311, 0.79859692, 0.12816042, 0.0], [995, 973, 798, 128]),
}
# Of 35 steps: index, sigma, timestep.
LONG_TABLES = {
    "flow": [(1, 0.99696499, 996), (17, 0.91354311, 913), (23, 0.83895528, 838), (34, 0.22709191, 227)],
    "phyai": [(1, 0.99705720, 997), (17, 0.91368932, 913), (23, 0.83914030, 839), (34, 0.22725463, 227)],
    "karras": [(1, 0.99431717, 994), (17, 0.92967933, 929), (23, 0.78580523, 785), (34, 0.12816042, 128)],
}


def reference(steps: int, **changes: object) -> UniPCMultistepScheduler:
    with tiny.quiet_reference():
        scheduler = UniPCMultistepScheduler.from_config(CONFIG | changes)
        scheduler.set_timesteps(steps)
    return scheduler


@pytest.mark.parametrize("name", TABLES)
def test_sigmas_equal_the_published_tables(name: str) -> None:
    sigmas, timesteps = TABLES[name]
    schedule = make_schedule(name, 4, 10.0, SCHEDULER)
    assert np.abs(schedule.sigmas - sigmas).max() < 1e-8
    assert schedule.timesteps == timesteps
    schedule = make_schedule(name, 35, 10.0, SCHEDULER)
    for i, sigma, timestep in LONG_TABLES[name]:
        assert abs(schedule.sigmas[i] - sigma) < 1e-8
        assert schedule.timesteps[i] == timestep


@pytest.mark.parametrize("steps", STEPS)
def test_karras_and_checkpoint_equal_diffusers(steps: int) -> None:
    scheduler = reference(steps)
    for name in ("karras", "checkpoint"):
        schedule = make_schedule(name, steps, 10.0, SCHEDULER)
        assert np.array_equal(schedule.sigmas, scheduler.sigmas.numpy())
        assert schedule.timesteps == scheduler.timesteps.tolist()


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("shift", [1.0, 3.0, 10.0])
def test_a_checkpoint_without_karras_equals_diffusers(steps: int, shift: float) -> None:
    scheduler = reference(steps, use_karras_sigmas=False, flow_shift=shift)
    config = SchedulerConfig.model_validate(CONFIG | {"use_karras_sigmas": False, "flow_shift": shift})
    schedule = make_schedule("checkpoint", steps, 99.0, config)
    assert np.abs(schedule.sigmas - scheduler.sigmas.numpy()).max() < 1e-7
    assert schedule.timesteps == scheduler.timesteps.tolist()


@pytest.mark.parametrize("name", ["flow", "phyai", "karras", "checkpoint"])
@pytest.mark.parametrize("steps", STEPS)
def test_sigmas_fall_strictly_from_below_one_to_zero(name: str, steps: int) -> None:
    sigmas = make_schedule(name, steps, 10.0, SCHEDULER).sigmas
    assert sigmas.shape == (steps + 1,)
    assert 0 < sigmas[0] < 1
    assert sigmas[-1] == 0
    assert (np.diff(sigmas) < 0).all()


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 10, 35])
def test_the_solver_equals_that_of_diffusers(steps: int) -> None:
    scheduler = reference(steps)
    noise = torch.randn(3, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    solver, expected = UniPC(make_schedule("karras", steps, 10.0, SCHEDULER).sigmas, noise), noise
    for i, timestep in enumerate(scheduler.timesteps):
        velocity = torch.sin(3 * expected + i) + 0.1 * expected
        expected = scheduler.step(velocity, timestep, expected, return_dict=False)[0]
        got = solver.step(velocity)
        # diffusers computes its coefficients in fp32
        assert torch.linalg.vector_norm(got - expected) <= 1e-5 * torch.linalg.vector_norm(expected)


def test_a_straight_path_is_followed_exactly() -> None:
    data, noise = torch.full((4,), 2.0, dtype=torch.float64), torch.arange(4, dtype=torch.float64)
    solver = UniPC(make_schedule("flow", 5, 10.0, SCHEDULER).sigmas, noise)
    for _ in range(5):
        solver.step(noise - data)
    sigma = float(np.float32(make_schedule("flow", 5, 10.0, SCHEDULER).sigmas[0]))
    assert torch.allclose(solver.sample, noise - sigma * (noise - data), atol=1e-12, rtol=0)


def test_the_error_falls_about_with_the_square_of_the_step() -> None:
    """Data that is normal with mean 1 and deviation 1/2 has a known velocity, and the flow a known end."""
    mean, deviation = 1.0, 0.5

    def error(steps: int) -> float:
        schedule = make_schedule("flow", steps, 1.0, SCHEDULER)
        first = float(schedule.sigmas[0])
        noise = torch.tensor([1.7], dtype=torch.float64)
        solver = UniPC(schedule.sigmas, noise)
        for sigma in map(float, schedule.sigmas[:-1]):
            spread = (1 - sigma) ** 2 * deviation**2 + sigma**2
            offset = (solver.sample - (1 - sigma) * mean) / spread
            solver.step(sigma * offset - (mean + (1 - sigma) * deviation**2 * offset))
        spread = math.sqrt((1 - first) ** 2 * deviation**2 + first**2)
        exact = mean + deviation * (noise - (1 - first) * mean) / spread
        return float((solver.sample - exact).abs())

    assert error(40) < error(20) / 3.4
    assert error(80) < error(40) / 3.4


def test_solvers_share_no_state() -> None:
    sigmas = make_schedule("flow", 4, 10.0, SCHEDULER).sigmas
    velocity = torch.ones(2)
    alone, one, other = (UniPC(sigmas, torch.zeros(2)) for _ in range(3))
    for i in range(4):
        alone.step(velocity * i)
        one.step(velocity * i)
        other.step(-velocity)
    assert torch.equal(one.sample, alone.sample)
