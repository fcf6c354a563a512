"""Triton kernels of ``fp8_ops``, which has the definitions: products accumulated in fp32, one rounding at the end."""

import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

FP8 = torch.float8_e4m3fn
LARGEST = torch.finfo(FP8).max
QUERIES, KEYS = 64, 128  # of a program's tile
WARPS, STAGES = 4, 3


def quantize(x: Tensor) -> tuple[Tensor, Tensor]:
    """``fp8_ops.quantize`` of a contiguous x (..., n): the values, and the scale of every row, (rows, 1)."""
    size = x.shape[-1]
    out, scale = _empty(x, size)
    _quantize[(scale.numel(),)](x, out, scale, size, LARGEST, BLOCK=triton.next_power_of_2(size), num_warps=8)
    return out, scale


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """``fp8_ops.rms_norm`` of a contiguous x (..., n)."""
    size = x.shape[-1]
    out, scale = _empty(x, size)
    block = triton.next_power_of_2(size)
    _norm_quantized[(scale.numel(),)](x, weight, out, scale, size, eps, LARGEST, BLOCK=block, num_warps=8)
    return out, scale


def swiglu(gate_up: Tensor) -> tuple[Tensor, Tensor]:
    """``fp8_ops.swiglu`` of a contiguous (..., 2 n)."""
    size = gate_up.shape[-1] // 2
    out, scale = _empty(gate_up, size)
    block = triton.next_power_of_2(size)
    _swiglu_quantized[(scale.numel(),)](gate_up, out, scale, size, LARGEST, BLOCK=block, num_warps=16)
    return out, scale


def attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """``fp8_ops.attention``, one program for ``QUERIES`` queries of a head."""
    length, heads, dim = query.shape[1:]
    seen, kv_heads = key.shape[1:3]
    attended = _quantize_attended(key.contiguous(), value.contiguous())
    keys, values = attended.keys.flatten(0, 1), attended.values.flatten(0, 1)
    out = query.new_empty(1, length, heads, dim)
    _attention_kernel[(triton.cdiv(length, QUERIES), heads)](
        query,
        TensorDescriptor.from_tensor(keys, [KEYS, dim]),
        TensorDescriptor.from_tensor(values, [dim, KEYS]),
        attended.key_scale,
        attended.value_scale,
        out,
        length,
        seen,
        values.shape[1],
        heads,
        heads // kv_heads,
        query.stride(1),
        math.log2(math.e) / math.sqrt(dim),
        LARGEST,
        QUERIES=QUERIES,
        KEYS=KEYS,
        DIM=dim,
        num_warps=WARPS,
        num_stages=STAGES,
    )
    return out


class _Attended(NamedTuple):
    """Keys less their mean, to which softmax is blind, and values, in fp8. m is rounded up to whole tiles."""

    keys: Tensor  # (kv_heads, m, dim)
    key_scale: Tensor  # (kv_heads,)
    values: Tensor  # (kv_heads, dim, m): the tensor cores want the summed dimension last
    value_scale: Tensor  # (kv_heads, dim)


def _quantize_attended(key: Tensor, value: Tensor) -> _Attended:
    seen, kv_heads, dim = key.shape[1:]
    padded = triton.cdiv(seen, KEYS) * KEYS
    mean = key[0].mean(0, dtype=torch.float32)
    low, high = torch.aminmax(key[0], dim=0)
    key_scale = torch.maximum(high - mean, mean - low).amax(1) / LARGEST
    low, high = torch.aminmax(value[0], dim=0)
    value_scale = torch.maximum(high, -low).float().clamp_min(1e-12) / LARGEST
    keys = key.new_empty(kv_heads, padded, dim, dtype=FP8)
    values = key.new_empty(kv_heads, dim, padded, dtype=FP8)
    _quantize_keys_values[(padded // KEYS, kv_heads)](
        key, value, mean, key_scale, value_scale, keys, values, seen, padded, kv_heads, KEYS=KEYS, DIM=dim, num_warps=8
    )
    return _Attended(keys, key_scale, values, value_scale)


def _empty(x: Tensor, size: int) -> tuple[Tensor, Tensor]:
    rows = x.shape[:-1].numel()
    return x.new_empty(*x.shape[:-1], size, dtype=FP8), x.new_empty(rows, 1, dtype=torch.float32)


@triton.jit
def _store_scaled(value, out, scale, row, column, inside, size, largest):
    """One row with the scale that its largest magnitude needs."""
    unit = tl.maximum(tl.max(tl.abs(value), axis=0), 1e-12) / largest
    tl.store(out + row * size + column, (value / unit).to(out.dtype.element_ty), mask=inside)
    tl.store(scale + row, unit)


@triton.jit
def _quantize(x, out, scale, size, largest, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < size
    value = tl.load(x + row * size + column, mask=inside, other=0).to(tl.float32)
    _store_scaled(value, out, scale, row, column, inside, size, largest)


@triton.jit
def _norm_quantized(x, weight, out, scale, size, eps, largest, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < size
    value = tl.load(x + row * size + column, mask=inside, other=0).to(tl.float32)
    gain = tl.load(weight + column, mask=inside, other=0).to(tl.float32)
    value = value * tl.rsqrt(tl.sum(value * value, axis=0) / size + eps) * gain
    _store_scaled(value, out, scale, row, column, inside, size, largest)


@triton.jit
def _swiglu_quantized(gate_up, out, scale, size, largest, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < size
    gate = tl.load(gate_up + row * 2 * size + column, mask=inside, other=0).to(tl.float32)
    up = tl.load(gate_up + row * 2 * size + size + column, mask=inside, other=0).to(tl.float32)
    _store_scaled(gate * tl.sigmoid(gate) * up, out, scale, row, column, inside, size, largest)


@triton.jit
def _quantize_keys_values(
    key,
    value,
    mean,
    key_scale,
    value_scale,
    keys,
    values,
    seen,
    padded,
    kv_heads,
    KEYS: tl.constexpr,
    DIM: tl.constexpr,
):
    head = tl.program_id(1)
    token = tl.program_id(0).to(tl.int64) * KEYS + tl.arange(0, KEYS)
    channel = tl.arange(0, DIM)
    inside = (token < seen)[:, None]
    offset = (token[:, None] * kv_heads + head) * DIM + channel[None, :]
    # Tokens past the last are written too: unfilled memory may hold what is no number.
    centred = tl.load(key + offset, mask=inside, other=0).to(tl.float32) - tl.load(mean + head * DIM + channel)[None, :]
    row = tl.load(value + offset, mask=inside, other=0).to(tl.float32)
    row = row / tl.load(value_scale + head * DIM + channel)[None, :]
    place = (head * padded + token[:, None]) * DIM + channel[None, :]
    tl.store(keys + place, (centred / tl.load(key_scale + head)).to(keys.dtype.element_ty))
    place = (head * DIM + channel[:, None]) * padded + token[None, :]
    tl.store(values + place, tl.trans(row.to(values.dtype.element_ty)))


@triton.jit
def _weights(score, high, total, row_scale, column, seen, MASKED: tl.constexpr):
    """Softmax weights of a tile times 256, which e4m3 holds best, and how much the sums so far fade."""
    if MASKED:
        score = tl.where(column[None, :] < seen, score, -float("inf"))
    top = tl.maximum(high, tl.max(score, 1) * row_scale)
    weight = tl.math.exp2(score * row_scale[:, None] - (top - 8.0)[:, None])
    fade = tl.math.exp2(high - top)
    return weight.to(tl.float8e4nv), fade, top, total * fade + tl.sum(weight, 1)


@triton.jit
def _attention_kernel(
    query,
    keys,
    values,
    key_scale,
    value_scale,
    out,
    length,
    seen,
    padded,
    heads,
    group,
    query_stride,
    temperature,
    largest,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
    DIM: tl.constexpr,
):
    head = tl.program_id(1)
    kv_head = head // group
    row = tl.program_id(0).to(tl.int64) * QUERIES + tl.arange(0, QUERIES)[:, None]
    channel = tl.arange(0, DIM)[None, :]
    inside = row < length
    value = tl.load(query + row * query_stride + head * DIM + channel, mask=inside, other=0).to(tl.float32)
    unit = tl.maximum(tl.max(tl.abs(value), 1), 1e-12) / largest
    quantized = (value / unit[:, None]).to(tl.float8e4nv)
    row_scale = unit * tl.load(key_scale + kv_head) * temperature
    high = tl.full([QUERIES], -float("inf"), tl.float32)
    total = tl.zeros([QUERIES], tl.float32)
    # Sums over tiles are fp32 additions: inside the tensor cores an fp8 sum keeps about 14 bits.
    sums = tl.zeros([QUERIES, DIM], tl.float32)
    column = tl.arange(0, KEYS)
    last = (seen - 1) // KEYS * KEYS
    # The next scores are under way while the softmax of these is computed.
    score = tl.dot(quantized, keys.load([kv_head * padded, 0]).T)
    for start in tl.range(0, last, KEYS):
        ahead = tl.dot(quantized, keys.load([kv_head * padded + start + KEYS, 0]).T)
        weight, fade, high, total = _weights(score, high, total, row_scale, column, seen, False)
        sums = sums * fade[:, None] + tl.dot(weight, values.load([kv_head * DIM, start]).T)
        score = ahead
    weight, fade, high, total = _weights(score, high, total, row_scale, column + last, seen, True)
    sums = sums * fade[:, None] + tl.dot(weight, values.load([kv_head * DIM, last]).T)
    sums = sums / total[:, None] * tl.load(value_scale + kv_head * DIM + channel)
    tl.store(out + (row * heads + head) * DIM + channel, sums.to(out.dtype.element_ty), mask=inside)
