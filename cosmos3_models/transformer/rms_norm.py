"""The norm of both towers."""

import torch
from torch import Tensor, nn

from cosmos3_models.kernels import token_ops


class RMSNorm(nn.Module):
    """``token_ops.rms_norm`` with a learnt gain of ``size`` channels."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Norm (..., size) over the last dimension."""
        return token_ops.rms_norm(x, self.weight, self.eps)
