"""What an unfinished video will look like: the estimate of its clean latents at a few steps and moments."""

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

PREVIEW_FRAMES = 4
"""Moments of the video that a preview shows."""

LATENTS_BEFORE = 1
"""Latent frames before each of them that the decoder sees as well: without any, it takes the moment for a first frame,
which it decodes worse."""


class Previews(NamedTuple):
    """When a run shows what it is making, and to whom.

    Attributes:
        steps: after which of the steps, counted from 1.
        show: called with the number of steps done and ``snippets`` of the estimate, on the model's device.
    """

    steps: frozenset[int]
    show: Callable[[int, Tensor], None]


NO_PREVIEWS = Previews(frozenset(), lambda _step, _snippets: None)


def preview_steps(previews: int, steps: int) -> frozenset[int]:
    """The steps after which a video of ``steps`` steps is shown: evenly spread, and never after the last one."""
    return frozenset(step for n in range(previews) if 0 < (step := round(steps * (n + 1) / (previews + 1))) < steps)


def clean_estimate(noisy: Tensor, velocity: Tensor, sigma: float) -> Tensor:
    """The data that a straight path from ``noisy`` along its velocity leads to: x - sigma v (Liu et al., 2022).

    Args:
        noisy, velocity: of one shape, fp32.
        sigma: the noise level of ``noisy``.
    """
    return noisy - sigma * velocity


def snippets(latents: Tensor) -> Tensor:
    """A few moments of a video, evenly spread, each with the latent frame before it.

    Args:
        latents: (1, c, t, h, w).

    Returns:
        (n, c, k, h, w): n is ``PREVIEW_FRAMES``, or less of a short video. The last of k latent frames is the moment.
    """
    last = latents.shape[2] - 1
    first = min(LATENTS_BEFORE, last)
    moments = sorted({first + round((last - first) * n / (PREVIEW_FRAMES - 1)) for n in range(PREVIEW_FRAMES)})
    return latents[0].unfold(1, first + 1, 1)[:, [moment - first for moment in moments]].permute(1, 0, 4, 2, 3)
