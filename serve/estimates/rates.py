"""Seconds that work takes, fitted to what finished jobs took."""

from collections.abc import Iterable, Sequence
from itertools import combinations
from math import inf, log2
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

REACH = 16.0  # work so much larger than any that was measured is not estimated
SIMPLER = 0.01  # a further part must bring the estimates so much nearer, as a share of the truth
ROUNDS = 6
NEAR = 0.1  # smaller misses are noise and averaged; of larger ones the median counts


class Work(NamedTuple):
    """What takes time: jobs begun, forward passes, floating-point operations."""

    jobs: float
    passes: float
    flops: float


class Sample(NamedTuple):
    """Work that took so long.

    Attributes:
        whole: operations of the whole of what the work is a part of.
    """

    work: Work
    seconds: float
    whole: float


class Rate:
    """Seconds of a job, of a pass and of an operation, each zero or more.

    Jobs differ in size by a factor of thousands, so what counts is how far an estimate is off as a share of the truth.
    A job that is far off, because others slowed it, says little. All samples of about one size together count as much
    as those of another. Where the samples are too alike to tell the parts apart, all time goes to the operations.
    """

    def __init__(self, samples: Sequence[Sample]) -> None:
        self.largest = max((sample.whole for sample in samples), default=0.0)
        self._rates = _fit(samples) if samples else np.full(len(Work._fields), inf)

    @property
    def per_flop(self) -> float:
        return float(self._rates[-1])

    def seconds(self, work: Work) -> float:
        """What ``work`` takes; infinite where it is far more than was measured."""
        return float(self._rates @ work) if work.flops <= REACH * self.largest else inf


def _fit(samples: Sequence[Sample]) -> NDArray[np.float64]:
    """The best of all sets of parts; of nearly equal ones the one with the fewest."""
    rows = np.array([np.array(sample.work) / sample.seconds for sample in samples])
    _, sizes, counts = np.unique([round(log2(sample.work.flops)) for sample in samples], False, True, True)
    shares = 1 / (counts[sizes] * len(counts))
    fits = (_fit_parts(rows, shares, parts) for parts in _sets_of_parts(rows))
    return min((fit for fit in fits if fit is not None), key=lambda fit: fit[0])[1]


def _sets_of_parts(rows: NDArray[np.float64]) -> Iterable[list[int]]:
    """Columns of ``Work`` that occur; those with the operations come first and win a tie."""
    occurring = [part for part in reversed(range(rows.shape[1])) if rows[:, part].any()]
    return (list(parts) for count in range(1, len(occurring) + 1) for parts in combinations(occurring, count))


def _fit_parts(
    rows: NDArray[np.float64], shares: NDArray[np.float64], parts: list[int]
) -> tuple[float, NDArray[np.float64]] | None:
    """How far this set is off and its rates, for ``rows @ rates`` near 1; None where one would be negative.

    Huber's regression, in which each row has its share, by reweighted least squares.
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
