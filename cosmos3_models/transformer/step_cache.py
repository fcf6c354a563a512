"""Reuse the work of one sampler step in the next if the first layer's contribution has hardly changed."""

from collections.abc import Callable

from torch import Tensor

Run = Callable[[Tensor, slice], Tensor]
"""Runs some of the layers on x (b, n, d), which the result overwrites."""


class StepCache:
    """The layers' contributions to the hidden state when all of them last ran, for one prompt of one request.

    This is first-block caching (ParaAttention): while the first layer's contribution has moved by less than
    ``threshold`` of its mean magnitude since then, that of the others is assumed to be the same. Clean tokens do not
    count: they hardly move, so they would hide how far the noisy ones have.

    Args:
        threshold: positive, at most 1.

    Attributes:
        reused: steps that did without the other layers so far.
    """

    def __init__(self, threshold: float) -> None:
        self.reused = 0
        self._threshold = threshold
        self._first: Tensor | None = None
        self._others: Tensor | None = None

    def run(self, x: Tensor, run: Run, noisy: Tensor | None = None) -> Tensor:
        """Take x (b, n, d), which is overwritten, through all layers, or through the first and add the others' last
        contribution.

        Args:
            noisy: (1 or b, n, 1), 1 for each noisy token and 0 for each clean one; None if all are noisy.
        """
        before = x.clone()
        x = run(x, slice(0, 1))
        first = x - before
        if self._others is not None and self._near(first, noisy):
            self.reused += 1
            return x + self._others
        self._first = first
        before.copy_(x)
        x = run(x, slice(1, None))
        self._others = x - before
        return x

    def _near(self, first: Tensor, noisy: Tensor | None) -> bool:
        if self._first is None:
            return False
        moved, size = (_magnitude(x, noisy) for x in (first - self._first, self._first))
        return bool(moved < self._threshold * size)


def _magnitude(x: Tensor, noisy: Tensor | None) -> Tensor:
    """The mean of x over all tokens or, with a mask, its share in that mean that the noisy ones have."""
    size = x.abs()
    return size.mean() if noisy is None else (size.mean(dim=-1, keepdim=True) * noisy).mean()
