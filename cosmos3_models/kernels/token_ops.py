"""What the transformer does between its matrix products and its attention.

Each operation is written in PyTorch, which defines it, and on a GPU without gradients runs as one kernel of
``token_kernels`` that reads every input once and rounds once.
"""

from types import ModuleType
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from cosmos3_models.transformer.positions import Rotary, rotate


class KeyValue(NamedTuple):
    key: Tensor  # (b, n, kv_heads, head_dim), normed and rotated
    value: Tensor  # (b, n, kv_heads, head_dim)


class Norms(NamedTuple):
    """The RMS norms of a query's and of a key's head."""

    query: Tensor  # (head_dim,), the gain
    key: Tensor  # (head_dim,)
    eps: float


def fused(x: Tensor) -> bool:
    """Whether the kernels run on x."""
    return x.is_cuda and not torch.is_grad_enabled()


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / rms(x) * weight over the last dimension, in fp32 with one rounding at the end."""
    if fused(x):
        return _kernels().rms_norm(x, weight, eps)
    return F.rms_norm(x.float(), weight.shape, weight.float(), eps).to(x.dtype)


def swiglu(gate_up: Tensor) -> Tensor:
    """silu(gate) * up of (..., 2 n), gate first."""
    if fused(gate_up):
        return _kernels().swiglu(gate_up)
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up


def add_linear(x: Tensor, inner: Tensor, weight: Tensor) -> Tensor:
    """x + inner @ weight.T. On a GPU without gradients the sum is rounded once and takes the place of x."""
    if fused(x):
        x.view(-1, x.shape[-1]).addmm_(inner.reshape(-1, inner.shape[-1]), weight.t())
        return x
    return x + F.linear(inner, weight)


def attention_inputs(
    projected: Tensor, kv_heads: int, norms: Norms, positions: Rotary, text: KeyValue | None
) -> tuple[Tensor, KeyValue]:
    """Heads from the joined projection: queries and keys normed and rotated, those of ``text`` behind the keys.

    Args:
        projected: (b, n, (heads + 2 kv_heads) * head_dim): queries, keys, values. Its memory may be reused.
        norms: of a query's and of a key's head.
        positions: of the n tokens.
        text: more keys and values to see, or None.

    Returns:
        Queries (b, n, heads, head_dim), and keys and values of the n tokens and the text.
    """
    if fused(projected) and _is_power_of_two(norms.query.shape[0]):
        return _kernels().attention_inputs(projected, kv_heads, norms, positions, text)
    heads = rearrange(projected, "b n (heads dim) -> b n heads dim", dim=norms.query.shape[0])
    query, key, value = heads.split([heads.shape[2] - 2 * kv_heads, kv_heads, kv_heads], dim=2)
    query = rotate(rms_norm(query, norms.query, norms.eps), positions)
    key = rotate(rms_norm(key, norms.key, norms.eps), positions)
    if text is None:
        return query, KeyValue(key, value)
    return query, KeyValue(torch.cat([key, text.key], 1), torch.cat([value, text.value], 1))


def _is_power_of_two(size: int) -> bool:
    """As Triton wants the sizes of what it loads whole."""
    return size & (size - 1) == 0


def _kernels() -> ModuleType:
    """Imported late: a machine without a GPU need not have Triton."""
    from cosmos3_models.kernels import token_kernels

    return token_kernels
