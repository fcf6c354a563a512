"""What the video autoencoder does between its convolutions; see ``cosmos3_models.kernels``."""

import math
from functools import cache

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from cosmos3_models.kernels import dispatch

KERNELS = "pixel_kernels"
SMALLEST = 1e-12  # length that a pixel's channels are taken to have at least


def channels_last(x: Tensor) -> Tensor:
    """x (b, c, t, h, w) in the layout that the kernels and the tensor cores want; as it is on the CPU."""
    return x.contiguous(memory_format=torch.channels_last_3d) if x.is_cuda else x


def empty(like: Tensor, channels: int, frames: int, height: int, width: int) -> Tensor:
    """Unfilled (b, channels, frames, height, width) like another tensor, in the layout of ``channels_last``."""
    layout = torch.channels_last_3d if like.is_cuda else torch.contiguous_format
    shape = (like.shape[0], channels, frames, height, width)
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=layout)


def convolve(
    x: Tensor, weight: Tensor, bias: Tensor | None, padding: tuple[int, ...], stride: tuple[int, ...] = (1, 1, 1)
) -> Tensor:
    """``F.conv3d``, on a CPU in fp32 by oneDNN whatever the size.

    PyTorch leaves one video of fewer than 20,480 channels x frames x rows to a loop: the demo's decode, a latent frame
    at a time, took 6.8 s with it and takes 1.1 s without. Other dtypes are PyTorch's choice, because oneDNN refuses
    bf16 on an x86-64 CPU without AVX-512, and fp64 everywhere.
    """
    if x.is_cpu and x.dtype == torch.float32 and torch.backends.mkldnn.is_available():
        return torch.ops.aten.mkldnn_convolution(x, weight, bias, padding, stride, (1, 1, 1), 1)
    return F.conv3d(x, weight, bias, stride, padding)


def norm(x: Tensor, gain: Tensor) -> Tensor:
    """Scale each pixel's channels to length sqrt(channels), then by ``gain`` (c, 1, ...); x is (b, c, ...)."""
    value = x.float()
    square = value.square().sum(1, keepdim=True).clamp_min(SMALLEST**2)
    return (value * (math.sqrt(x.shape[1]) * square.rsqrt()) * gain.float()).to(x.dtype)


def norm_silu(x: Tensor, bias: Tensor | None, gain: Tensor, out: Tensor) -> None:
    """Write silu(norm(x + bias)) into ``out``; x and ``out`` are (b, c, t, h, w), bias is (c,)."""
    if dispatch.fused_video(x):
        dispatch.kernels(KERNELS).norm_silu(x, bias, gain, out)
    else:
        out.copy_(F.silu(norm(x if bias is None else x + _spread(bias), gain)))


def add_bias_(x: Tensor, bias: Tensor, other: Tensor) -> Tensor:
    """x + bias + other in place of x, all (b, c, t, h, w) but the bias (c,).

    Gradients allow it where x comes from a convolution, which does not need its result again.
    """
    if dispatch.fused_video(x, other):
        return dispatch.kernels(KERNELS).add_bias_(x, bias, other)
    return x.add_(_spread(bias)).add_(other)


@cache
def _tap_sums(device: torch.device) -> Tensor:
    """Which old taps each new one adds up: phase, tap, old."""
    return torch.tensor([[[1, 0, 0], [0, 1, 1]], [[1, 1, 0], [0, 0, 1]]], dtype=torch.float32, device=device)


def phase_weights(weight: Tensor) -> Tensor:
    """A 3 x 3 convolution after doubling height and width, as a 2 x 2 one before it with four times the outputs.

    Doubled rows repeat, so an even row meets two different rows of the source and so does an odd one: the taps that
    meet the same row add up. (o, c, 3, 3) to (2, 2, o, c, 2, 2), the phases of row and column first.
    """
    sums = _tap_sums(weight.device)
    return torch.einsum("pia,qjb,ocab->pqocij", sums, sums, weight.float()).to(weight.dtype)


def merge_phases(phases: Tensor, bias: Tensor, source: Tensor, time_factor: int, first: bool) -> Tensor:
    """The doubled picture: phases interleaved, plus bias, plus ``source`` repeated over the larger grid.

    Args:
        phases: (b * t, 4 c, h + 1, w + 1) of a convolution with ``phase_weights`` and a padding of 1.
        bias: (c,)
        source: (b, c', t', h, w) with t' * time_factor == t, or one frame less if ``first``.
        first: the chunk starts the video, whose first frame is not doubled in time.

    Returns:
        (b, c, t, 2 h, 2 w)
    """
    if dispatch.fused_video(source) and phases.is_contiguous(memory_format=torch.channels_last):
        return dispatch.kernels(KERNELS).merge_phases(phases, bias, source, time_factor, first)
    height, width = phases.shape[2] - 1, phases.shape[3] - 1
    parts = rearrange(phases, "(b t) (p q c) h w -> p q b t c h w", p=2, q=2, b=source.shape[0])
    rows = [torch.stack([parts[p, q, ..., p : p + height, q : q + width] for q in (0, 1)], -1) for p in (0, 1)]
    doubled = rearrange(torch.stack(rows, -2), "b t c h w p q -> b c t (h p) (w q)")
    return channels_last(doubled + _spread(bias) + repeated(source, bias.shape[0], time_factor, first))


def repeated(source: Tensor, channels: int, time_factor: int, first: bool) -> Tensor:
    """Channels repeated and dealt out over time, rows and columns, to half as many of each at most; no weights."""
    copies = channels * time_factor * 4 // source.shape[1]
    dealt = rearrange(
        source.repeat_interleave(copies, dim=1),
        "b (c s p q) t h w -> b c (t s) (h p) (w q)",
        s=time_factor,
        p=2,
        q=2,
    )
    return dealt[:, :, time_factor - 1 :] if first else dealt


def averaged(x: Tensor, channels: int, time_factor: int, side_factor: int) -> Tensor:
    """x on a smaller grid without weights: frames, rows and columns become channels, and groups of those their mean.

    Args:
        x: (b, c, t, h, w); zeros in front make t a multiple of ``time_factor``.

    Returns:
        (b, channels, t / time_factor, h / side_factor, w / side_factor)
    """
    x = F.pad(x, (0, 0, 0, 0, -x.shape[2] % time_factor, 0))
    folded = rearrange(
        x,
        "b c (t s) (h p) (w q) -> b (c s p q) t h w",
        s=time_factor,
        p=side_factor,
        q=side_factor,
    )
    return channels_last(rearrange(folded, "b (c g) t h w -> b c g t h w", c=channels).mean(2))


def _spread(bias: Tensor) -> Tensor:
    return bias[:, None, None, None]
