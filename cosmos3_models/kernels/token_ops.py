"""What the transformer does between its matrix products and its attention; see ``cosmos3_models.kernels``."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from cosmos3_models.kernels import dispatch

KERNELS = "token_kernels"


class KeyValue(NamedTuple):
    """What queries attend to."""

    key: Tensor  # (b, n, kv_heads, head_dim), normed and rotated
    value: Tensor  # (b, n, kv_heads, head_dim)


class Rotary(NamedTuple):
    """Cosines and sines of every token's rotary angles, each (n, head_dim / 2)."""

    cos: Tensor
    sin: Tensor


class HeadNorms(NamedTuple):
    """The RMS norms of a query's and of a key's head."""

    query: Tensor  # (head_dim,), the gain
    key: Tensor  # (head_dim,)
    eps: float


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / rms(x) * weight over the last dimension, in fp32 with one rounding at the end (Zhang and Sennrich, 2019).

    Args:
        x: (..., n), any float dtype.
        weight: (n,)
        eps: added to the mean square.
    """
    if dispatch.fused(x):
        return dispatch.kernels(KERNELS).rms_norm(x, weight, eps)
    return F.rms_norm(x.float(), weight.shape, weight.float(), eps).to(x.dtype)


def swiglu(gate_up: Tensor) -> Tensor:
    """silu(gate) * up (Shazeer, 2020): (..., 2 n), gate first, to (..., n)."""
    if dispatch.fused(gate_up):
        return dispatch.kernels(KERNELS).swiglu(gate_up)
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up


def add_linear(x: Tensor, inner: Tensor, weight: Tensor) -> Tensor:
    """x (..., d) plus inner (..., k) @ weight.T, weight (d, k), as a new tensor."""
    return x + F.linear(inner, weight)


def add_linear_(x: Tensor, inner: Tensor, weight: Tensor) -> Tensor:
    """``add_linear`` in place of x. Gradients forbid it, because they need x as it was.

    On a GPU the product is added to x before it is rounded.
    """
    if dispatch.fused(x):
        x.view(-1, x.shape[-1]).addmm_(inner.reshape(-1, inner.shape[-1]), weight.t())
        return x
    return x.add_(F.linear(inner, weight))


def rotate(x: Tensor, table: Rotary) -> Tensor:
    """Rotate each head's halves against each other in the table's dtype (Su et al., 2021); x is (b, n, heads, dim)."""
    first, second = x.chunk(2, dim=-1)
    cos, sin = table.cos[:, None], table.sin[:, None]
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).to(x.dtype)


def attention_inputs(
    projected: Tensor, kv_heads: int, norms: HeadNorms, positions: Rotary, text: KeyValue | None, ranks: int = 1
) -> tuple[Tensor, KeyValue]:
    """Split a joined projection into heads, norm and rotate queries and keys, and put the text's keys behind.

    Args:
        projected: (b, n, (heads + 2 kv_heads) * head_dim): queries, keys, values.
        norms: of a query's and of a key's head.
        positions: of the n tokens.
        text: more keys and values to attend to, or None.
        ranks: that share the layer's heads equally. A head's result does not depend on it, to the last bit.

    Returns:
        Queries (b, n, heads, head_dim), and keys and values of the n tokens and the text.
    """
    if dispatch.fused(projected) and _is_power_of_two(norms.query.shape[0]):
        run = dispatch.kernels(KERNELS).attention_inputs
        query, key, value = run(projected, kv_heads, norms, positions, text, ranks)
        return query, KeyValue(key, value)
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
