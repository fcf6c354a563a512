"""Triton kernels of ``token_ops``, which has the definitions: memory-bound, fp32 inside, one rounding at the end."""

import torch
import triton
import triton.language as tl
from torch import Tensor

Pair = tuple[Tensor, Tensor]

SWIGLU_BLOCK = 4096


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """``token_ops.rms_norm`` of x (..., n), one program a row."""
    x = x.contiguous()
    out = torch.empty_like(x)
    size = x.shape[-1]
    _rms_norm[(x.numel() // size,)](x, weight, out, size, eps, BLOCK=triton.next_power_of_2(size), num_warps=8)
    return out


def swiglu(gate_up: Tensor) -> Tensor:
    """``token_ops.swiglu`` of a contiguous (..., 2 n)."""
    inner = gate_up.shape[-1] // 2
    out = gate_up.new_empty(*gate_up.shape[:-1], inner)
    block = min(SWIGLU_BLOCK, triton.next_power_of_2(inner))
    grid = (out.numel() // inner, triton.cdiv(inner, block))
    _swiglu[grid](gate_up, out, inner, BLOCK=block, num_warps=8)
    return out


def attention_inputs(
    projected: Tensor,
    kv_heads: int,
    norms: tuple[Tensor, Tensor, float],
    positions: Pair,
    text: Pair | None,
    ranks: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """``token_ops.attention_inputs``, one program a token: queries, keys and values, each in memory of its own.

    Triton adds a head's squares in an order that depends on the number of heads in a tile. So a tile has room for all
    heads of the layer, also where ``ranks`` share them.

    Args:
        projected: (b, n, (heads + 2 kv_heads) * d), contiguous; d is a power of two.
        norms: gains (d,) of queries and of keys, and what is added to the mean square.
        positions: cosines and sines, each (n, d / 2).
        text: keys and values (b, m, kv_heads, d), which go behind the others.
        ranks: that share the layer's heads equally.
    """
    query_gain, key_gain, eps = norms
    batch, length, width = projected.shape
    dim = query_gain.shape[0]
    heads = width // dim - 2 * kv_heads
    seen = length + (0 if text is None else text[0].shape[1])
    query = projected.new_empty(batch, length, heads, dim)
    key, value = (projected.new_empty(batch, seen, kv_heads, dim) for _ in range(2))
    if text is not None:
        key[:, length:], value[:, length:] = text
    rows, kv_rows = (triton.next_power_of_2(count * ranks) for count in (heads, kv_heads))
    sizes = {"HEADS": rows, "KV": kv_rows, "HALF": dim // 2}
    tensors = projected, query, key, value, query_gain, key_gain, *positions
    _attention_inputs[(batch * length,)](*tensors, eps, length, seen, heads, kv_heads, **sizes, num_warps=8)
    return query, key, value


@triton.jit
def _rms_norm(x, weight, out, size, eps, BLOCK: tl.constexpr) -> None:
    row = tl.program_id(0).to(tl.int64) * size
    column = tl.arange(0, BLOCK)
    inside = column < size
    value = tl.load(x + row + column, mask=inside, other=0).to(tl.float32)
    gain = tl.load(weight + column, mask=inside, other=0).to(tl.float32)
    scale = tl.rsqrt(tl.sum(value * value, axis=0) / size + eps)
    tl.store(out + row + column, value * scale * gain, mask=inside)


@triton.jit
def _swiglu(gate_up, out, inner, BLOCK: tl.constexpr) -> None:
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < inner
    gate = tl.load(gate_up + row * 2 * inner + column, mask=inside, other=0).to(tl.float32)
    up = tl.load(gate_up + row * 2 * inner + inner + column, mask=inside, other=0).to(tl.float32)
    tl.store(out + row * inner + column, gate * tl.sigmoid(gate) * up, mask=inside)


@triton.jit
def _norm_rotate(
    source,
    target,
    gain,
    cos,
    sin,
    eps,
    heads,
    HEADS: tl.constexpr,
    HALF: tl.constexpr,
) -> None:
    """Norm and rotate one token's ``heads`` x 2 HALF from ``source`` to ``target``."""
    slot = tl.arange(0, HALF)
    head = tl.arange(0, HEADS)[:, None]
    inside = head < heads
    offset = head * 2 * HALF + slot[None, :]
    first = tl.load(source + offset, mask=inside, other=0).to(tl.float32)
    second = tl.load(source + offset + HALF, mask=inside, other=0).to(tl.float32)
    squares = tl.sum(first * first, axis=1) + tl.sum(second * second, axis=1)
    scale = tl.rsqrt(squares / (2 * HALF) + eps)[:, None]
    first *= scale * tl.load(gain + slot).to(tl.float32)[None, :]
    second *= scale * tl.load(gain + HALF + slot).to(tl.float32)[None, :]
    tl.store(target + offset, first * cos - second * sin, mask=inside)
    tl.store(target + offset + HALF, second * cos + first * sin, mask=inside)


@triton.jit
def _attention_inputs(
    projected,
    query,
    key,
    value,
    query_gain,
    key_gain,
    cos,
    sin,
    eps,
    length,
    seen,
    heads,
    kv_heads,
    HEADS: tl.constexpr,
    KV: tl.constexpr,
    HALF: tl.constexpr,
) -> None:
    token = tl.program_id(0).to(tl.int64)
    place = token % length
    slot = tl.arange(0, HALF)
    turn_cos = tl.load(cos + place * HALF + slot).to(tl.float32)[None, :]
    turn_sin = tl.load(sin + place * HALF + slot).to(tl.float32)[None, :]
    row = projected + token * (heads + 2 * kv_heads) * 2 * HALF
    target = (token // length * seen + place) * kv_heads * 2 * HALF
    _norm_rotate(row, query + token * heads * 2 * HALF, query_gain, turn_cos, turn_sin, eps, heads, HEADS, HALF)
    row += heads * 2 * HALF
    _norm_rotate(row, key + target, key_gain, turn_cos, turn_sin, eps, kv_heads, KV, HALF)
    row += kv_heads * 2 * HALF
    offset = tl.arange(0, KV)[:, None] * 2 * HALF + tl.arange(0, 2 * HALF)[None, :]
    inside = tl.arange(0, KV)[:, None] < kv_heads
    tl.store(value + target + offset, tl.load(row + offset, mask=inside, other=0), mask=inside)
