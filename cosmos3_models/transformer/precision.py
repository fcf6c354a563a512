"""How a layer computes: exactly, or in fp8 where a request allows it, and how if gradients are wanted."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cosmos3_models.approximations import Approximation
from cosmos3_models.checkpoint.configs import TransformerConfig
from cosmos3_models.errors import InvalidInput
from cosmos3_models.kernels import fp8_ops, token_ops
from cosmos3_models.kernels.fp8_ops import Scaled
from cosmos3_models.transformer.attention import HOPPER, attention
from cosmos3_models.transformer.rms_norm import RMSNorm

FP8_MULTIPLE = 16  # of rows and columns that an fp8 product takes

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""``attention`` without a mask: queries, keys, values."""


class Products(Protocol):
    """The matrix products of a layer, each with the element-wise work around it.

    x and the results are (b, n, width). Whether a sum takes the place of x depends on the class alone, not on the
    device: ``Differentiable`` makes new tensors, and all others overwrite x.
    """

    def norm_linear(self, x: Tensor, norm: RMSNorm, linear: nn.Linear) -> Tensor:
        """linear(norm(x))"""

    def add_linear(self, x: Tensor, inner: Tensor, linear: nn.Linear) -> Tensor:
        """x + linear(inner)"""

    def add_swiglu_linear(self, x: Tensor, gate_up: Tensor, linear: nn.Linear) -> Tensor:
        """x + linear(silu(gate) * up)"""


class Exact:
    """The model's own dtype throughout. Sums overwrite x."""

    def norm_linear(self, x: Tensor, norm: RMSNorm, linear: nn.Linear) -> Tensor:
        return F.linear(norm(x), linear.weight)

    def add_linear(self, x: Tensor, inner: Tensor, linear: nn.Linear) -> Tensor:
        return token_ops.add_linear_(x, inner, linear.weight)

    def add_swiglu_linear(self, x: Tensor, gate_up: Tensor, linear: nn.Linear) -> Tensor:
        return token_ops.add_linear_(x, token_ops.swiglu(gate_up), linear.weight)


class Differentiable(Exact):
    """``Exact``, for training: sums are new tensors, because gradients need x as it was."""

    def add_linear(self, x: Tensor, inner: Tensor, linear: nn.Linear) -> Tensor:
        return token_ops.add_linear(x, inner, linear.weight)

    def add_swiglu_linear(self, x: Tensor, gate_up: Tensor, linear: nn.Linear) -> Tensor:
        return token_ops.add_linear(x, token_ops.swiglu(gate_up), linear.weight)


class Fp8:
    """Weights with a scale per output, activations with a scale per token, found as they pass. Sums overwrite x.

    Args:
        weights: of every linear that is called; see ``quantized_weights``.
    """

    def __init__(self, weights: dict[nn.Linear, Scaled]) -> None:
        self._weights = weights

    def norm_linear(self, x: Tensor, norm: RMSNorm, linear: nn.Linear) -> Tensor:
        return fp8_ops.linear(fp8_ops.rms_norm(x, norm.weight, norm.eps), self._weights[linear])

    def add_linear(self, x: Tensor, inner: Tensor, linear: nn.Linear) -> Tensor:
        return x.add_(fp8_ops.linear(fp8_ops.quantize(inner), self._weights[linear]))

    def add_swiglu_linear(self, x: Tensor, gate_up: Tensor, linear: nn.Linear) -> Tensor:
        return x.add_(fp8_ops.linear(fp8_ops.swiglu(gate_up), self._weights[linear]))


@dataclass(frozen=True)
class Precision:
    """How a layer computes its matrix products and its attention without a mask."""

    products: Products
    attend: Attend


EXACT = Precision(Exact(), attention)
DIFFERENTIABLE = Precision(Differentiable(), attention)


@torch.no_grad()
def quantized_weights(linears: Iterable[nn.Linear]) -> dict[nn.Linear, Scaled]:
    """Quantize the weight of every linear, a scale per output."""
    return {linear: fp8_ops.quantize(linear.weight) for linear in linears}


def check_fp8(approximation: Approximation, device: torch.device, config: TransformerConfig) -> None:
    """Raise ``InvalidInput`` where this device or model cannot compute as asked."""
    if not (approximation.fp8_linears or approximation.fp8_attention):
        return
    field = "fp8_linears" if approximation.fp8_linears else "fp8_attention"
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < HOPPER:
        expected = f"false, or a GPU of compute capability {HOPPER[0]}.{HOPPER[1]} or newer"
        raise InvalidInput(field, True, expected, "only those have fp8 tensor cores")
    widths = (config.hidden_size, config.intermediate_size, config.num_key_value_heads * config.head_dim)
    if approximation.fp8_linears and any(width % FP8_MULTIPLE for width in widths):
        expected = f"false, or a model whose layers are multiples of {FP8_MULTIPLE} wide"
        raise InvalidInput("fp8_linears", True, expected, f"this model's are {', '.join(map(str, widths))}")
    if approximation.fp8_attention and config.head_dim not in fp8_ops.HEAD_DIMS:
        expected = f"false, or a model with heads of {' or '.join(map(str, fp8_ops.HEAD_DIMS))} channels"
        raise InvalidInput("fp8_attention", True, expected, f"this model's have {config.head_dim}")
