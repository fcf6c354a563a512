"""Triton kernels of ``pixel_ops``, which has the definitions: memory-bound, fp32 inside, one rounding at the end.

All tensors are those of one video, channels-last: the channels of a pixel are neighbours in memory.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

ELEMENTS = 4096  # that a program handles, about


def norm_silu(x: Tensor, bias: Tensor | None, gain: Tensor, out: Tensor) -> None:
    """``pixel_ops.norm_silu`` of x (1, c, t, h, w) into ``out`` of the same shape."""
    pixels, channels = x.shape[2:].numel(), x.shape[1]
    rows = _rows(channels)
    grid = (triton.cdiv(pixels, rows),)
    given = gain if bias is None else bias
    _norm_silu[grid](
        x,
        given,
        gain,
        out,
        pixels,
        channels,
        math.sqrt(channels),
        HAS_BIAS=bias is not None,
        ROWS=rows,
        BLOCK=triton.next_power_of_2(channels),
    )


def add_bias_(x: Tensor, bias: Tensor, other: Tensor) -> Tensor:
    """``pixel_ops.add_bias_`` of x and other (1, c, t, h, w)."""
    pixels, channels = x.shape[2:].numel(), x.shape[1]
    rows = _rows(channels)
    sizes = {"ROWS": rows, "BLOCK": triton.next_power_of_2(channels)}
    _add_bias[(triton.cdiv(pixels, rows),)](x, bias, other, pixels, channels, **sizes)
    return x


def merge_phases(phases: Tensor, bias: Tensor, source: Tensor, time_factor: int, first: bool) -> Tensor:
    """``pixel_ops.merge_phases``; phases (t, 4 c, h + 1, w + 1) are channels-last too."""
    frames, channels, inputs = phases.shape[0], bias.shape[0], source.shape[1]
    height, width = source.shape[3:]
    out = torch.empty(
        (1, channels, frames, 2 * height, 2 * width),
        dtype=phases.dtype,
        device=phases.device,
        memory_format=torch.channels_last_3d,
    )
    rows = _rows(channels)
    pixels = frames * 4 * height * width
    copies = channels * time_factor * 4 // inputs
    skipped = time_factor - 1 if first else 0
    sizes = {"TIME": time_factor, "COPIES": copies, "ROWS": rows, "BLOCK": triton.next_power_of_2(channels)}
    _merge_phases[(triton.cdiv(pixels, rows),)](
        phases, bias, source, out, pixels, height, width, channels, inputs, skipped, **sizes
    )
    return out


def _rows(channels: int) -> int:
    return max(1, ELEMENTS // triton.next_power_of_2(channels))


@triton.jit
def _norm_silu(
    x,
    bias,
    gain,
    out,
    pixels,
    channels,
    length,
    HAS_BIAS: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    pixel = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    channel = tl.arange(0, BLOCK)[None, :]
    inside = (pixel < pixels) & (channel < channels)
    offset = pixel * channels + channel
    value = tl.load(x + offset, mask=inside, other=0).to(tl.float32)
    if HAS_BIAS:
        value += tl.load(bias + channel, mask=channel < channels, other=0).to(tl.float32)
    norm = tl.sqrt(tl.sum(value * value, axis=1))[:, None]
    value = value * (length / tl.maximum(norm, 1e-12)) * tl.load(gain + channel, mask=channel < channels, other=0)
    tl.store(out + offset, value * tl.sigmoid(value), mask=inside)


@triton.jit
def _add_bias(x, bias, other, pixels, channels, ROWS: tl.constexpr, BLOCK: tl.constexpr) -> None:
    pixel = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    channel = tl.arange(0, BLOCK)[None, :]
    inside = (pixel < pixels) & (channel < channels)
    offset = pixel * channels + channel
    value = tl.load(x + offset, mask=inside, other=0).to(tl.float32)
    value += tl.load(bias + channel, mask=channel < channels, other=0).to(tl.float32)
    value += tl.load(other + offset, mask=inside, other=0).to(tl.float32)
    tl.store(x + offset, value, mask=inside)


@triton.jit
def _merge_phases(
    phases,
    bias,
    source,
    out,
    pixels,
    height,
    width,
    channels,
    inputs,
    skipped,
    TIME: tl.constexpr,
    COPIES: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    pixel = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    channel = tl.arange(0, BLOCK)[None, :]
    inside = (pixel < pixels) & (channel < channels)
    column = pixel % (2 * width)
    row = pixel // (2 * width) % (2 * height)
    frame = pixel // (4 * width * height)
    p, q = row % 2, column % 2
    cell = (frame * (height + 1) + row // 2 + p) * (width + 1) + column // 2 + q
    value = tl.load(phases + (cell * 4 + p * 2 + q) * channels + channel, mask=inside, other=0).to(tl.float32)
    value += tl.load(bias + channel, mask=channel < channels, other=0).to(tl.float32)
    moment = frame + skipped
    place = (moment // TIME * height + row // 2) * width + column // 2
    dealt = (channel * (4 * TIME) + moment % TIME * 4 + p * 2 + q) // COPIES
    value += tl.load(source + place * inputs + dealt, mask=inside, other=0).to(tl.float32)
    tl.store(out + pixel * channels + channel, value, mask=inside)
