"""How the generation tower computes: exactly, or in fp8 where a request allows it."""

from collections.abc import Iterable
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cosmos3_models.checkpoint.configs import TransformerConfig
from cosmos3_models.errors import InvalidInput
from cosmos3_models.kernels import token_ops
from cosmos3_models.params import Approximation
from cosmos3_models.transformer.attention import HOPPER, attention

FP8_MULTIPLE = 16  # of rows and columns that an fp8 product takes


class Arithmetic(Protocol):
    """The products of a layer, and what feeds them in the form that they read."""

    def norm(self, x: Tensor, weight: Tensor, eps: float) -> Any: ...

    def project(self, normed: Any, linear: nn.Linear) -> Tensor: ...

    def swiglu(self, gate_up: Tensor) -> Any: ...

    def add(self, x: Tensor, inner: Any, linear: nn.Linear) -> Tensor:
        """x + linear(inner), which may take the place of x."""

    def attend(self, query: Tensor, key: Tensor, value: Tensor, *, causal: bool) -> Tensor: ...


class Exact:
    """The model's own dtype throughout."""

    def norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        return token_ops.rms_norm(x, weight, eps)

    def project(self, normed: Tensor, linear: nn.Linear) -> Tensor:
        return F.linear(normed, linear.weight)

    def swiglu(self, gate_up: Tensor) -> Tensor:
        return token_ops.swiglu(gate_up)

    def add(self, x: Tensor, inner: Tensor, linear: nn.Linear) -> Tensor:
        return token_ops.add_linear(x, inner, linear.weight)

    def attend(self, query: Tensor, key: Tensor, value: Tensor, *, causal: bool) -> Tensor:
        return attention(query, key, value, causal=causal)


class Scaled(NamedTuple):
    """A matrix in fp8 with a scale for every row."""

    values: Tensor  # (..., n)
    scale: Tensor  # (rows, 1), fp32


class Fp8Linears(Exact):
    """Weights with a scale per output, activations with a scale per token, found as they pass."""

    def __init__(self, weights: dict[nn.Linear, Scaled]) -> None:
        self._weights = weights

    def norm(self, x: Tensor, weight: Tensor, eps: float) -> Any:
        return Scaled(*_kernels().rms_norm(x, weight, eps))

    def project(self, normed: Any, linear: nn.Linear) -> Tensor:
        return self._product(normed, linear)

    def swiglu(self, gate_up: Tensor) -> Any:
        return Scaled(*_kernels().swiglu(gate_up))

    def add(self, x: Tensor, inner: Any, linear: nn.Linear) -> Tensor:
        scaled = inner if isinstance(inner, Scaled) else Scaled(*_kernels().quantized(inner))
        return x.add_(self._product(scaled, linear))

    def _product(self, x: Scaled, linear: nn.Linear) -> Tensor:
        weight = self._weights[linear]
        rows = x.values.flatten(0, -2)
        out = torch._scaled_mm(
            rows,
            weight.values.t(),
            scale_a=x.scale,
            scale_b=weight.scale.t(),
            out_dtype=torch.bfloat16,
            use_fast_accum=True,
        )
        return out.unflatten(0, x.values.shape[:-1])


class Fp8Attention:
    """Adds fp8 attention to another arithmetic."""

    def __init__(self, other: Exact) -> None:
        self.norm, self.project, self.swiglu, self.add = other.norm, other.project, other.swiglu, other.add

    def attend(self, query: Tensor, key: Tensor, value: Tensor, *, causal: bool) -> Tensor:
        out: Tensor = attention(query, key, value, causal=True) if causal else _kernels().attention(query, key, value)
        return out


EXACT = Exact()


def quantized_weights(linears: Iterable[nn.Linear]) -> dict[nn.Linear, Scaled]:
    """The weight of every linear in fp8."""
    return {linear: Scaled(*_kernels().quantized(linear.weight)) for linear in linears}


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
    if approximation.fp8_attention and config.head_dim not in (made_for := _kernels().HEAD_DIMS):
        expected = f"false, or a model with heads of {' or '.join(map(str, made_for))} channels"
        raise InvalidInput("fp8_attention", True, expected, f"this model's have {config.head_dim}")


def _kernels() -> Any:
    """Imported late: a machine without a GPU need not have Triton."""
    from cosmos3_models.kernels import fp8_kernels

    return fp8_kernels
