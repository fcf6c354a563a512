"""The encoder of the causal video autoencoder (Wan 2.2): pixels to latents, a chunk of frames at a time.

The first frame makes the first latent frame alone, every four more make another one. A latent frame depends on no
later pixels, so whoever needs the first few latent frames encodes the first few pictures only.
"""

from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from numpy.typing import NDArray
from torch import Tensor, nn

from cosmos3_models.autoencoders.frames import to_pixels
from cosmos3_models.autoencoders.video_layers import (
    TIME_KERNEL,
    CausalConv3d,
    History,
    MidBlock,
    Norm,
    ResidualBlock,
    latent_statistics,
)
from cosmos3_models.checkpoint.configs import VideoVAEConfig
from cosmos3_models.kernels import pixel_ops
from cosmos3_models.kernels.pixel_ops import channels_last
from cosmos3_models.shapes import FRAMES_PER_LATENT, PIXELS_PER_LATENT, LatentGrid

# Latent positions that a chunk holds at most, unless one latent frame has more: what keeps the device busy.
CELLS_ON_CPU = 512
CELLS_ON_CARD = 4096
LATENTS_PER_CHUNK = 8  # at most
LARGEST_ALIVE = 5  # tensors as large as the first block's input, in its last residual block


class Downsampler(nn.Module):
    """Halves height and width, and with ``in_time`` the frames after the video's first."""

    def __init__(self, channels: int, *, in_time: bool) -> None:
        super().__init__()
        # Index 1 of the checkpoint's pair: zeros at the right and at the bottom, then this convolution.
        self.resample = nn.ModuleDict({"1": nn.Conv2d(channels, channels, 3, stride=2)})
        if in_time:
            self.time_conv = nn.Conv3d(channels, channels, (TIME_KERNEL, 1, 1), stride=(2, 1, 1))

    def forward(self, x: Tensor, history: History) -> Tensor:
        """(b, c, t, h, w) to (b, c, t', h / 2, w / 2); with ``in_time`` t' is t / 2, or t for the first frame."""
        frames = F.pad(rearrange(x, "b c t h w -> (b t) c h w"), (0, 1, 0, 1))
        x = rearrange(self.resample["1"](frames), "(b t) c h w -> b c t h w", b=x.shape[0])
        if not hasattr(self, "time_conv"):
            return x
        convolution: Any = self.time_conv
        extended = history.extend(convolution, x)[:, :, 1:]  # a stride of two needs one frame of the past, not two
        if history.first_chunk:  # its frame is remembered, but halved with nothing
            return x
        return pixel_ops.convolve(extended, convolution.weight, convolution.bias, (0, 0, 0), convolution.stride)


class DownBlock(nn.Module):
    """Residual blocks and, unless the block is the last, a downsampler; plus the block's input on the smaller grid."""

    def __init__(self, inputs: int, outputs: int, blocks: int, *, downsample: bool, in_time: bool) -> None:
        super().__init__()
        self.outputs = outputs
        self.factors = (2 if in_time else 1, 2 if downsample else 1)
        widths = [inputs] + [outputs] * blocks
        self.resnets = nn.ModuleList(ResidualBlock(a, b) for a, b in pairwise(widths))
        if downsample:
            self.downsampler = Downsampler(outputs, in_time=in_time)

    def forward(self, x: Tensor, history: History) -> Tensor:
        """(b, inputs, t, h, w) to (b, outputs, ...) on the grid that ``Downsampler`` says."""
        shortcut = pixel_ops.averaged(x, self.outputs, *self.factors)
        for block in self.resnets:
            x = block(x, history)
        return (self.downsampler(x, history) if hasattr(self, "downsampler") else x) + shortcut


class Encoder3d(nn.Module):
    """The layers of the encoder, with the names that they have in the checkpoint."""

    def __init__(self, config: VideoVAEConfig) -> None:
        super().__init__()
        widths = [config.base_dim * m for m in (1, *config.dim_mult)]
        in_time = (*config.temporal_downsample, False)
        last = len(in_time) - 1
        self.conv_in = CausalConv3d(config.in_channels, widths[0])
        self.down_blocks = nn.ModuleList(
            DownBlock(a, b, config.num_res_blocks, downsample=i < last, in_time=in_time[i])
            for i, (a, b) in enumerate(pairwise(widths))
        )
        self.mid_block = MidBlock(widths[-1])
        self.norm_out = Norm(widths[-1], 3)
        self.conv_out = CausalConv3d(widths[-1], 2 * config.z_dim)

    def forward(self, x: Tensor, history: History) -> Tensor:
        """Pixels (b, in_channels, frames, 8 h, 8 w), about -1 to 1, in patches, to (b, 2 z_dim, t, h, w)."""
        x = self.conv_in.step(x, history)
        for block in self.down_blocks:
            x = block(x, history)
        return self.conv_out.step(self.mid_block(x, history), history, self.norm_out)


class WanVideoEncoder(nn.Module):
    """Pictures to the video latents that the denoiser works on."""

    def __init__(self, config: VideoVAEConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder3d(config)
        self.quant_conv = CausalConv3d(2 * config.z_dim, 2 * config.z_dim, (1, 1, 1))

    @torch.inference_mode()
    def forward(self, frames: Iterable[NDArray[np.uint8]], latents_per_chunk: int | None = None) -> Tensor:
        """Encode pictures as they come; no more than a chunk of them is in memory.

        Args:
            frames: uint8 RGB (n, 16 h, 16 w, 3) each, 4 t - 3 pictures in all, in portions of any size: the result
                does not depend on it.
            latents_per_chunk: latent frames at a time, by default ``chunk_size``.

        Returns:
            fp32 (1, c, t, h, w) on the model's device, normalised.

        Raises:
            ValueError: the number of pictures is not 4 t - 3, or their size no multiple of 16.
        """
        device = self.quant_conv.weight.device
        chunks = self._regrouped(frames, latents_per_chunk)
        return self._latents(to_pixels(torch.tensor(chunk, device=device)) for chunk in chunks)

    @torch.inference_mode()
    def latents(self, pixels: Tensor, latents_per_chunk: int | None = None) -> Tensor:
        """The call, for pixels (1, 3, 4 t - 3, 16 h, 16 w) in [-1, 1], any float dtype, on any device."""
        _check_count(pixels.shape[2])
        *_, height, width = pixels.shape
        size = self._frames_per_chunk(height, width, latents_per_chunk)
        first, rest = pixels[:, :, :1], pixels[:, :, 1:]
        chunks = (first, *rest.split(size, dim=2)) if rest.shape[2] else (first,)
        return self._latents(chunk.to(self.quant_conv.weight.device) for chunk in chunks)

    def moments(self, pixels: Tensor, history: History) -> Tensor:
        """Mean, then log variance (b, 2 c, t, h, w), of the next latent frames, not normalised, in the weights' dtype.

        Args:
            pixels: (b, 3, n, 16 h, 16 w) in [-1, 1], on the model's device: a video's first frame, or 4 t later ones.
        """
        size = self.config.patch_size
        x = rearrange(pixels, "b c t (h p) (w q) -> b (c q p) t h w", p=size, q=size)
        hidden = self.encoder(channels_last(x.to(self.quant_conv.weight.dtype)), history)
        history.first_chunk = False
        return self.quant_conv(hidden)

    def warm_up(self) -> None:
        """Load and compile what a request needs, by encoding the smallest video that has every kind of chunk."""
        self([np.zeros((1 + FRAMES_PER_LATENT, PIXELS_PER_LATENT, PIXELS_PER_LATENT, 3), np.uint8)])

    def chunk_size(self, height: int, width: int) -> int:
        """Latent frames that are encoded together on this device, 1 to ``LATENTS_PER_CHUNK``.

        Args:
            height, width: latent rows and columns.
        """
        on_card = self.quant_conv.weight.device.type == "cuda"
        return self.chunk_on_card(height, width) if on_card else _latents_within(CELLS_ON_CPU, height, width)

    def chunk_on_card(self, height: int, width: int) -> int:
        """``chunk_size`` on a GPU."""
        return _latents_within(CELLS_ON_CARD, height, width)

    def peak_bytes(self, latents_per_chunk: int, height: int, width: int) -> int:
        """Bytes that encoding takes at most, besides the weights and cuDNN's scratch memory.

        A chunk is largest in the first block, before anything is halved.

        Args:
            height, width: latent rows and columns.
        """
        levels = len(self.config.temporal_downsample)
        frames = latents_per_chunk * FRAMES_PER_LATENT + TIME_KERNEL - 1
        chunk = LARGEST_ALIVE * frames * self.config.base_dim * 4**levels
        history = 0
        for level, block in enumerate(self.encoder.down_blocks):
            inputs = sum(m.in_channels for m in block.modules() if isinstance(m, CausalConv3d) and m.kernel_size[0] > 1)
            history += (TIME_KERNEL - 1) * inputs * 4 ** (levels - level)
        return self.quant_conv.weight.dtype.itemsize * height * width * (chunk + history)

    def _frames_per_chunk(self, height: int, width: int, latents: int | None) -> int:
        grid = LatentGrid.of_video(1, height, width)
        if grid.height * PIXELS_PER_LATENT != height or grid.width * PIXELS_PER_LATENT != width:
            raise ValueError(f"got pictures of {width}x{height} pixels, expected multiples of {PIXELS_PER_LATENT}")
        return FRAMES_PER_LATENT * (latents or self.chunk_size(grid.height, grid.width))

    def _regrouped(self, frames: Iterable[NDArray[np.uint8]], latents: int | None) -> Iterator[NDArray[np.uint8]]:
        """The first picture, then ``latents`` times four at a time, then the rest."""
        waiting, size, count = np.empty((0, 0, 0, 3), np.uint8), 1, 0
        for portion in frames:
            _, height, width, _ = portion.shape
            longest = self._frames_per_chunk(height, width, latents)
            waiting = np.concatenate([waiting, portion]) if len(waiting) else portion
            count += len(portion)
            while len(waiting) >= size:
                yield waiting[:size]
                waiting, size = waiting[size:], longest
        _check_count(count)
        if len(waiting):
            yield waiting

    def _latents(self, chunks: Iterable[Tensor]) -> Tensor:
        mean, std = latent_statistics(self.config, self.quant_conv.weight.device)
        history = History()
        modes = [self.moments(chunk, history).float()[:, : self.config.z_dim] for chunk in chunks]
        return (torch.cat(modes, dim=2) - mean) / std


def _latents_within(cells: int, height: int, width: int) -> int:
    return max(1, min(LATENTS_PER_CHUNK, cells // (height * width)))


def _check_count(frames: int) -> None:
    if frames % FRAMES_PER_LATENT != 1:
        raise ValueError(f"got {frames} pictures, expected {FRAMES_PER_LATENT}t - {FRAMES_PER_LATENT - 1}")
