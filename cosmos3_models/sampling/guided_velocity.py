"""The guided velocity of each step of a run: from the model, or from what it gave in earlier steps."""

from collections import deque
from collections.abc import Sequence
from math import log

from torch import Tensor

Velocities = list[Tensor]  # of each stream


class GuidedVelocity:
    """Guidance in one run, and what its later steps reuse: guided velocities, and the prompts' last difference.

    Args:
        scale: of ``guide``.
        plan: the passes of each step, as ``passes_by_step`` makes them; what no step reuses is not kept.

    Attributes:
        plan: as given.
    """

    def __init__(self, scale: float, plan: Sequence[int]) -> None:
        self.plan = plan
        self._scale = scale
        self._computed: deque[tuple[float, Velocities]] = deque(maxlen=2 if 0 in plan else 0)
        self._differences: deque[Velocities] = deque(maxlen=1 if {1, 2} <= set(plan) else 0)

    def __call__(self, sigma: float, branches: Sequence[Velocities]) -> Velocities:
        """The guided velocity of each stream, fp32.

        Args:
            sigma: the noise level of the step.
            branches: the model's velocities for each prompt that ran; extrapolated if none did.
        """
        guided = self._guided(branches) if branches else self._extrapolated(sigma)
        if branches:
            self._computed.append((sigma, guided))
        return guided

    def _guided(self, branches: Sequence[Velocities]) -> Velocities:
        positive, *negative = branches
        if not negative and self._differences:
            return [x.float() + (self._scale - 1) * by for x, by in zip(positive, self._differences[0], strict=True)]
        if negative and self._differences.maxlen:
            self._differences.append([x.float() - y.float() for x, y in zip(positive, negative[0], strict=True)])
        return [guide(stream, self._scale) for stream in zip(*branches, strict=True)]

    def _extrapolated(self, sigma: float) -> Velocities:
        """The line in log(sigma / (1 - sigma)) through the last two computed velocities."""
        (before, earlier), (last, later) = self._computed
        weight = (_log_noise(sigma) - _log_noise(last)) / (_log_noise(last) - _log_noise(before))
        return [x + weight * (x - y) for x, y in zip(later, earlier, strict=True)]


def _log_noise(sigma: float) -> float:
    """Log of the share of noise over that of data, in which velocities are nearer to a line than in sigma."""
    return log(sigma) - log(1 - sigma)


def guide(branches: Sequence[Tensor], scale: float) -> Tensor:
    """Extrapolate from the negative prompt's velocity past the prompt's: classifier-free guidance in fp32.

    The formula is that of Ho and Salimans (2022).

    Args:
        branches: velocities of the prompt and, with guidance, of the negative prompt, in any float dtype.
        scale: 1 gives the prompt's velocity.

    Returns:
        fp32, shaped like each branch.
    """
    positive, *negative = (branch.float() for branch in branches)
    if not negative:
        return positive
    return negative[0] + scale * (positive - negative[0])
