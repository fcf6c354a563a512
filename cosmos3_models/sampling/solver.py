"""The UniPC solver (Zhao et al., 2023, order 2, B2) for flow matching.

A sample is x = (1 - sigma) * data + sigma * noise; the model gives the velocity noise - data.
"""

import math

import numpy as np
from numpy.typing import NDArray
from torch import Tensor


class UniPC:
    """The solver of one stream in one run. ``sample`` is the current noisy latent.

    Args:
        sigmas: (steps + 1,), falling, the last one 0.
        noise: of any shape, fp32; left as it is.
    """

    def __init__(self, sigmas: NDArray[np.float32], noise: Tensor) -> None:
        self.sample = noise
        self._sigmas = [float(sigma) for sigma in sigmas]
        self._lambdas = [_log_snr(sigma) for sigma in self._sigmas]
        self._step = 0
        self._order = 1  # of the last prediction
        self._start = noise  # where the last prediction started from
        self._data: list[Tensor] = []  # the last two estimates of the data, oldest first

    def step(self, velocity: Tensor) -> Tensor:
        """Advance ``sample`` to the next noise level and return it.

        Args:
            velocity: of the model at ``sample`` and the present noise level, shaped like it.
        """
        i, last = self._step, len(self._sigmas) - 2
        data = self.sample - self._sigmas[i] * velocity
        self._step += 1
        if i == last:
            # At sigma 0 the predictor returns the estimate itself, so correcting its start changes nothing.
            self.sample = data
            return data
        self._start = self._corrected(i, data) if i else self.sample
        self._data = [*self._data[-1:], data]
        self._order = min(2, len(self._data), last + 1 - i)
        self.sample = self._predicted(i)
        return self.sample

    def _predicted(self, i: int) -> Tensor:
        """Step from noise level i to i + 1 (the UniP update)."""
        *_, data = self._data
        h = self._lambdas[i + 1] - self._lambdas[i]
        weight = (1 - self._sigmas[i + 1]) * math.expm1(-h)
        out = self._sigmas[i + 1] / self._sigmas[i] * self._start - weight * data
        if self._order == 2:
            ratio = (self._lambdas[i - 1] - self._lambdas[i]) / h
            out = out - weight * 0.5 / ratio * (self._data[0] - data)
        return out

    def _corrected(self, i: int, data: Tensor) -> Tensor:
        """Repeat the step from i - 1 to i with the data estimate at i, which is now known (the UniC update)."""
        *older, previous = self._data
        h = self._lambdas[i] - self._lambdas[i - 1]
        weight = (1 - self._sigmas[i]) * math.expm1(-h)
        out = self._sigmas[i] / self._sigmas[i - 1] * self._start - weight * previous
        if self._order == 1:
            return out - weight * 0.5 * (data - previous)
        ratio = (self._lambdas[i - 2] - self._lambdas[i - 1]) / h
        rho_older, rho_new = _corrector_weights(h, ratio)
        return out - weight * (rho_older / ratio * (older[0] - previous) + rho_new * (data - previous))


def _log_snr(sigma: float) -> float:
    return math.inf if sigma == 0 else math.log(1 - sigma) - math.log(sigma)


def _corrector_weights(h: float, ratio: float) -> tuple[float, float]:
    """Solve the order-2 conditions of UniC for the weights of the older and the new difference."""
    scale = math.expm1(-h)
    first = scale / -h - 1
    b1 = first / scale
    b2 = 2 * (first / -h - 0.5) / scale
    older = (b1 - b2) / (1 - ratio)
    return older, b1 - older
