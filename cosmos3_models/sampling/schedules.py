"""Noise schedules for flow matching: a sample is (1 - sigma) * data + sigma * noise."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cosmos3_models.checkpoint.configs import SchedulerConfig
from cosmos3_models.params import SigmaSchedule

TRAIN_TIMESTEPS = 1000
KARRAS_RHO = 7
KARRAS_SIGMAS = (200.0, 0.147)  # of Cosmos3, for a scheduler_config.json that gives none

Sigmas = NDArray[np.float64]


class Schedule(NamedTuple):
    """The noise levels of a run."""

    sigmas: NDArray[np.float32]  # (steps + 1,), falling, the last one 0
    timesteps: list[int]  # (steps,), of 1000, as the model reads them

    @property
    def steps(self) -> int:
        """How often the model runs for each prompt."""
        return len(self.timesteps)


def make_schedule(name: SigmaSchedule, steps: int, shift: float, config: SchedulerConfig) -> Schedule:
    """Make the schedule called ``name``.

    ``flow`` is the official one: linear in the unshifted time, shifted once by shift * t / (1 + (shift - 1) * t) (Esser
    et al., 2024). ``phyai`` shifts the top end twice. ``karras`` ignores ``shift``. ``checkpoint`` follows ``config``,
    with the shift of ``config``.

    Args:
        steps: at least 1.
        shift: positive; more than 1 puts more of the steps into high noise.
    """
    if name == "checkpoint":
        name = "karras" if config.use_karras_sigmas else name
    if name == "karras":
        sigmas = _karras(steps, config)
    elif name == "checkpoint":
        sigmas = _shifted(np.linspace(1, 1 / TRAIN_TIMESTEPS, steps + 1)[:-1], config.flow_shift)
        sigmas[0] -= 1e-6  # a sigma of exactly 1 has no finite log signal-to-noise ratio
    else:
        top = 1 - 1 / TRAIN_TIMESTEPS
        start = _shifted(np.float64(top), shift) if name == "phyai" else top
        sigmas = _shifted(np.linspace(start, 0, steps + 1)[:-1], shift)
    timesteps = (sigmas * TRAIN_TIMESTEPS).astype(np.int64).tolist()
    return Schedule(np.append(sigmas, 0).astype(np.float32), timesteps)


def _shifted(u: Sigmas | np.float64, shift: float) -> Sigmas:
    return np.asarray(shift * u / (1 + (shift - 1) * u))


def _karras(steps: int, config: SchedulerConfig) -> Sigmas:
    """Karras et al. (2022), equation 5, carried over to flow matching by sigma / (sigma + 1)."""
    high = (config.sigma_max or KARRAS_SIGMAS[0]) ** (1 / KARRAS_RHO)
    low = (config.sigma_min or KARRAS_SIGMAS[1]) ** (1 / KARRAS_RHO)
    sigmas = (high + np.linspace(0, 1, steps) * (low - high)) ** KARRAS_RHO
    return np.asarray(sigmas / (sigmas + 1))
