"""Seconds of work, fitted to the times of completed jobs."""

from collections.abc import Iterable, Sequence
from itertools import combinations
from math import inf, log2
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

REACH = 16.0  # work that is larger than the largest measured one by more than this factor is not estimated
SIMPLER = 0.01  # by how much a further part must reduce the relative error of the estimates
ROUNDS = 6
NEAR = 0.1  # smaller relative errors are noise and averaged; of larger ones the median counts


class Work(NamedTuple):
    """What takes time: started jobs, forward passes, floating-point operations."""

    jobs: float
    passes: float
    flops: float


class Sample(NamedTuple):
    """Work and the seconds that it took.

    Attributes:
        whole: operations of the complete denoise or decode that the work is a part of.
    """

    work: Work
    seconds: float
    whole: float


class Rate:
    """Seconds per job, per pass and per operation, each zero or more.

    Jobs differ in size by a factor of thousands, so the fit reduces the relative error of the estimates. Outliers, such
    as jobs slowed by others, count little. All samples of one size together weigh as much as those of another.
    If the samples are too similar to separate the parts, all time is attributed to the operations.
    """

    def __init__(self, samples: Sequence[Sample]) -> None:
        self.largest = max((sample.whole for sample in samples), default=0.0)
        self._rates = _fit(samples) if samples else np.full(len(Work._fields), inf)

    @property
    def per_flop(self) -> float:
        """Seconds per floating-point operation."""
        return float(self._rates[-1])

    def seconds(self, work: Work) -> float:
        """Return the seconds of ``work``; infinite if it is far larger than anything measured."""
        return float(self._rates @ work) if work.flops <= REACH * self.largest else inf


def _fit(samples: Sequence[Sample]) -> NDArray[np.float64]:
    """Return the rates of the best set of parts; of nearly equal sets, the one with the fewest parts."""
    rows = np.array([np.array(sample.work) / sample.seconds for sample in samples])
    _, sizes, counts = np.unique([round(log2(sample.work.flops)) for sample in samples], False, True, True)
    shares = 1 / (counts[sizes] * len(counts))
    fits = (_fit_parts(rows, shares, parts) for parts in _sets_of_parts(rows))
    return min((fit for fit in fits if fit is not None), key=lambda fit: fit[0])[1]


def _sets_of_parts(rows: NDArray[np.float64]) -> Iterable[list[int]]:
    """Return sets of columns of ``Work`` that occur; those with the operations come first and win a tie."""
    occurring = [part for part in reversed(range(rows.shape[1])) if rows[:, part].any()]
    return (list(parts) for count in range(1, len(occurring) + 1) for parts in combinations(occurring, count))


def _fit_parts(
    rows: NDArray[np.float64], shares: NDArray[np.float64], parts: list[int]
) -> tuple[float, NDArray[np.float64]] | None:
    """Return the error and the rates of a set, for ``rows @ rates`` near 1; None if a rate would be negative.

    Huber regression with a weight for each row, by iteratively reweighted least squares.
    """
    scale = rows[:, parts].max(axis=0)
    scaled = rows[:, parts] / scale
    weights = np.sqrt(shares)
    for _ in range(ROUNDS):
        solution = np.linalg.lstsq(scaled * weights[:, None], weights, rcond=None)[0]
        misses = np.abs(scaled @ solution - 1)
        weights = np.sqrt(shares / np.maximum(misses, NEAR))
    if solution.min() < 0:
        return None
    rates = np.zeros(rows.shape[1])
    rates[parts] = solution / scale
    return float(misses @ shares) + SIMPLER * len(parts), rates
