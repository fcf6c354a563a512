"""Muon: steps of momentum whose matrices are made orthogonal (Jordan et al., 2024), in few launches.

``torch.optim.Muon`` computes the same one matrix at a time. A model as small as the demo has over a hundred matrices
of five shapes, and a GPU would wait for thousands of launches a step.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor

COEFFICIENTS = (3.4445, -4.775, 2.0315)  # of the quintic that pushes singular values to 1
ITERATIONS = 5
MATCH_ADAM = 0.2  # root mean square of a step, about that of AdamW (Liu et al., 2025)


class Muon(torch.optim.Optimizer):
    """For matrices alone. Learning rate and decay of weights mean what they mean for AdamW.

    Args:
        parts: for a matrix that stands for several, their rows: each becomes orthogonal by itself.
    """

    def __init__(
        self,
        matrices: Iterable[Tensor],
        lr: float,
        weight_decay: float,
        momentum: float = 0.95,
        parts: Mapping[Tensor, Sequence[int]] | None = None,
    ) -> None:
        super().__init__(list(matrices), {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})
        self._parts = parts or {}

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update every matrix; each must have a gradient."""
        assert closure is None, "not supported"
        for group in self.param_groups:
            for same in self._of_shape(group["params"]):
                weights, gradients, averages = (list(tensors) for tensors in zip(*same, strict=True))
                torch._foreach_lerp_(averages, gradients, 1 - group["momentum"])
                ahead = torch._foreach_lerp(gradients, averages, group["momentum"])
                steps = orthogonal(torch.stack(ahead)).to(weights[0].dtype)
                torch._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])
                size = MATCH_ADAM * math.sqrt(max(weights[0].shape))
                torch._foreach_add_(weights, steps.unbind(), alpha=-group["lr"] * size)

    def _of_shape(self, matrices: Iterable[Tensor]) -> Iterable[list[tuple[Tensor, ...]]]:
        """Weight, gradient and average of every part, those of one shape together."""
        of_shape: dict[torch.Size, list[tuple[Tensor, ...]]] = defaultdict(list)
        for matrix in matrices:
            assert matrix.grad is not None
            rows = list(self._parts.get(matrix, [len(matrix)]))
            tensors = (matrix, matrix.grad, self._average(matrix))
            for part in zip(*(tensor.split(rows) for tensor in tensors), strict=True):
                of_shape[part[0].shape].append(part)
        return of_shape.values()

    def _average(self, weight: Tensor) -> Tensor:
        state = self.state[weight]
        if "average" not in state:
            state["average"] = torch.zeros_like(weight)
        return state["average"]


def orthogonal(matrices: Tensor) -> Tensor:
    """Matrices (n, rows, columns) with the same singular vectors and singular values near 1, in bf16."""
    wide = matrices.bfloat16()
    if matrices.shape[1] > matrices.shape[2]:
        wide = wide.mT
    wide = wide / wide.norm(dim=(1, 2), keepdim=True).clamp_min(1e-7)
    a, b, c = COEFFICIENTS
    for _ in range(ITERATIONS):
        gram = wide @ wide.mT
        wide = torch.baddbmm(wide, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), wide, beta=a)
    return wide.mT if matrices.shape[1] > matrices.shape[2] else wide
