"""Reuse the work of one sampler step in the next if the first layer's contribution has hardly changed."""

from collections.abc import Callable

from torch import Tensor

Run = Callable[[Tensor, slice], Tensor]
"""Runs some of the layers on x (b, n, d), which the result overwrites."""


class StepCache:
    """The layers' contributions to the hidden state when all of them last ran, for one prompt of one request.

    This is first-block caching (ParaAttention): while the first layer's contribution has moved by less than
    ``threshold`` of its mean magnitude since then, that of the others is assumed to be the same.

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

    def run(self, x: Tensor, run: Run) -> Tensor:
        """Take x (b, n, d), which is overwritten, through all layers, or through the first and add the others' last
        contribution.
        """
        before = x.clone()
        x = run(x, slice(0, 1))
        first = x - before
        if self._others is not None and self._near(first):
            self.reused += 1
            return x + self._others
        self._first = first
        before.copy_(x)
        x = run(x, slice(1, None))
        self._others = x - before
        return x

    def _near(self, first: Tensor) -> bool:
        if self._first is None:
            return False
        moved, size = (first - self._first).abs().mean(), self._first.abs().mean()
        return bool(moved < self._threshold * size)
