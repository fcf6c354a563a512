"""The operations of the fp8 modes: values in e4m3 with fp32 scales; see ``cosmos3_models.kernels``.

The PyTorch definitions need no fp8 tensor cores and are slow: they say what the kernels must come close to.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from cosmos3_models.kernels import dispatch, token_ops

KERNELS = "fp8_kernels"
FP8 = torch.float8_e4m3fn
LARGEST = torch.finfo(FP8).max
SMALLEST = 1e-12  # magnitude that a row is taken to have at least
WEIGHT_SCALE = 256.0  # of softmax weights in e4m3, so that the largest stay below its limit and few fall to 0
HEAD_DIMS = (32, 64, 128)  # that the attention kernel is made for; measured at 128


class Scaled(NamedTuple):
    """A matrix in fp8 with a scale for every row."""

    values: Tensor  # (..., n)
    scale: Tensor  # (rows, 1), fp32


def quantize(x: Tensor) -> Scaled:
    """x (..., n) in fp8, each row scaled so that its largest magnitude is the largest of e4m3."""
    if dispatch.fused(x):
        return Scaled(*dispatch.kernels(KERNELS).quantize(x))
    scale = x.float().abs().amax(-1, keepdim=True).clamp_min(SMALLEST) / LARGEST
    return Scaled((x.float() / scale).to(FP8), scale.view(-1, 1))


def dequantize(x: Scaled) -> Tensor:
    """The fp32 values that a scaled matrix stands for."""
    return x.values.float() * x.scale.view(*x.values.shape[:-1], 1)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Scaled:
    """``token_ops.rms_norm``, quantized without another rounding in between."""
    if dispatch.fused(x):
        return Scaled(*dispatch.kernels(KERNELS).rms_norm(x, weight, eps))
    return quantize(token_ops.rms_norm(x.float(), weight, eps))


def swiglu(gate_up: Tensor) -> Scaled:
    """``token_ops.swiglu``, quantized without another rounding in between."""
    if dispatch.fused(gate_up):
        return Scaled(*dispatch.kernels(KERNELS).swiglu(gate_up))
    return quantize(token_ops.swiglu(gate_up.float()))


def linear(x: Scaled, weight: Scaled) -> Tensor:
    """x (..., n) times the transpose of weight (m, n), accumulated in fp32: bf16 (..., m).

    The kernel is cuBLAS's; n and m must be multiples of 16 for it.
    """
    if not dispatch.fused(x.values):
        return F.linear(dequantize(x), dequantize(weight)).bfloat16()
    out = torch._scaled_mm(
        x.values.flatten(0, -2),
        weight.values.t(),
        scale_a=x.scale,
        scale_b=weight.scale.t(),
        out_dtype=torch.bfloat16,
        use_fast_accum=True,
    )
    return out.unflatten(0, x.values.shape[:-1])


def attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Softmax attention without a mask, of queries, keys, softmax weights and values in fp8.

    The keys lose their mean, to which softmax is blind. Each query has a scale, each head of the keys, and each channel
    of the values (Zhang et al., SageAttention, 2024).

    Args:
        query: bf16 (1, n, heads, d), d one of ``HEAD_DIMS``.
        key, value: bf16 (1, m, kv_heads, d) with heads a multiple of kv_heads; head h reads h // (heads / kv_heads).

    Returns:
        bf16 (1, n, heads, d)
    """
    if dispatch.fused(query):
        return dispatch.kernels(KERNELS).attention(query, key, value)
    centred = key.float() - key.float().mean(1, keepdim=True)
    group = query.shape[2] // key.shape[2]
    keys, values = (x.repeat_interleave(group, 2) for x in (_rounded(centred, (1, 3)), _rounded(value.float(), (1,))))
    scores = torch.einsum("bnhd,bmhd->bhnm", dequantize(quantize(query)), keys) / math.sqrt(query.shape[3])
    weights = WEIGHT_SCALE * (scores - scores.amax(-1, keepdim=True)).exp()
    out = torch.einsum("bhnm,bmhd->bhnd", weights.to(FP8).float(), values) / weights.sum(-1, keepdim=True)
    return out.transpose(1, 2).to(query.dtype)


def _rounded(x: Tensor, dims: tuple[int, ...]) -> Tensor:
    """x as fp8 with one scale for all of ``dims`` can say it."""
    scale = x.abs().amax(dims, keepdim=True).clamp_min(SMALLEST) / LARGEST
    return (x / scale).to(FP8).float() * scale
