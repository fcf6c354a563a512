"""The decoder of the causal video autoencoder (Wan 2.2): latents to pixels, a chunk of latent frames at a time."""

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from numpy.typing import NDArray
from torch import Tensor, nn

from cosmos3_models.autoencoders.frames import HostCopy, to_frames
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
from cosmos3_models.shapes import FRAMES_PER_LATENT

CELLS_PER_CHUNK = 512  # on the CPU: latent positions that a chunk holds at most, unless one frame has more
LATENTS_PER_CHUNK = 8  # on a GPU, at most: more save nothing that can be measured
CARD_SHARE = 0.2  # of a GPU's memory that a chunk may take; not of what is free, so that bytes depend on the card alone
ELEMENTS = 2**31 - 1  # of one tensor: 32-bit indices reach them. One latent frame may have more; cuDNN 9.19 takes it


class Upsampler(nn.Module):
    """Doubles height and width, and with ``in_time`` every frame but the video's first."""

    def __init__(self, channels: int, *, in_time: bool) -> None:
        super().__init__()
        self.time_factor = 2 if in_time else 1
        # Index 1 of the checkpoint's pair: nearest-neighbour doubling, then this convolution.
        self.resample = nn.ModuleDict({"1": nn.Conv2d(channels, channels, 3)})
        if in_time:
            self.time_conv = CausalConv3d(channels, 2 * channels, (TIME_KERNEL, 1, 1))

    def forward(self, x: Tensor, source: Tensor, history: History) -> Tensor:
        """Enlarge x (b, c, t, h, w) and add ``source``, the block's input, spread over the larger grid.

        Returns:
            (b, c, t', 2 h, 2 w); with ``in_time`` t' is 2 t, or t for the video's first frame.
        """
        # The first frame is neither doubled nor remembered: time_conv takes the second to be the start.
        if hasattr(self, "time_conv") and not history.first_chunk:
            x = rearrange(self.time_conv.step(x, history), "b (two c) t h w -> (b t two) h w c", two=2)
        else:
            x = rearrange(x, "b c t h w -> (b t) h w c")
        convolution: Any = self.resample["1"]
        weights = rearrange(pixel_ops.phase_weights(convolution.weight), "p q o c i j -> (p q o) c i j")
        phases = F.conv2d(x.permute(0, 3, 1, 2), weights, padding=1)
        return pixel_ops.merge_phases(phases, convolution.bias, source, self.time_factor, history.first_chunk)


class UpBlock(nn.Module):
    """Residual blocks, then an upsampler unless the block is the last."""

    def __init__(self, inputs: int, outputs: int, blocks: int, *, upsample: bool, in_time: bool) -> None:
        super().__init__()
        widths = [inputs] + [outputs] * blocks
        self.resnets = nn.ModuleList(ResidualBlock(a, b) for a, b in pairwise(widths))
        if upsample:
            self.upsampler = Upsampler(outputs, in_time=in_time)

    def forward(self, x: Tensor, history: History) -> Tensor:
        """(b, inputs, t, h, w) to (b, outputs, ...) on the grid that ``Upsampler`` says."""
        source = x
        for block in self.resnets:
            x = block(x, history)
        return self.upsampler(x, source, history) if hasattr(self, "upsampler") else x


class Decoder3d(nn.Module):
    """The layers of the decoder, with the names that they have in the checkpoint."""

    def __init__(self, config: VideoVAEConfig) -> None:
        super().__init__()
        widths = [config.decoder_base_dim * m for m in (config.dim_mult[-1], *reversed(config.dim_mult))]
        in_time = (*reversed(config.temporal_downsample), False)
        last = len(in_time) - 1
        self.conv_in = CausalConv3d(config.z_dim, widths[0])
        self.mid_block = MidBlock(widths[0])
        self.up_blocks = nn.ModuleList(
            UpBlock(a, b, config.num_res_blocks + 1, upsample=i < last, in_time=in_time[i])
            for i, (a, b) in enumerate(pairwise(widths))
        )
        self.norm_out = Norm(widths[-1], 3)
        self.conv_out = CausalConv3d(widths[-1], config.out_channels)

    def forward(self, x: Tensor, history: History) -> Tensor:
        """Latents (b, z_dim, t, h, w) to pixels (b, out_channels, frames, 8 h, 8 w), about -1 to 1, in patches."""
        x = self.mid_block(self.conv_in.step(x, history), history)
        for block in self.up_blocks:
            x = block(x, history)
        return self.conv_out.step(x, history, self.norm_out)


class WanVideoDecoder(nn.Module):
    """Video latents to pixels."""

    def __init__(self, config: VideoVAEConfig) -> None:
        super().__init__()
        self.config = config
        self.post_quant_conv = CausalConv3d(config.z_dim, config.z_dim, (1, 1, 1))
        self.decoder = Decoder3d(config)

    @torch.inference_mode()
    def forward(self, latents: Tensor, latents_per_chunk: int | None = None) -> Iterator[Tensor]:
        """Decode chunk by chunk.

        Args:
            latents: (1, c, t, h, w) as the denoiser leaves them, any float dtype, on any device.
            latents_per_chunk: latent frames at a time, by default ``chunk_size``.

        Yields:
            fp32 (1, 3, frames, 16 h, 16 w) in [0, 1]: one frame, then 4 to a latent frame.
        """
        history = History()
        latents = self._denormalized(latents)
        latents_per_chunk = latents_per_chunk or self.chunk_size(*latents.shape[3:])
        first, rest = latents[:, :, :1], latents[:, :, 1:]
        for chunk in (first, *rest.split(latents_per_chunk, dim=2)) if rest.shape[2] else (first,):
            pixels = self.decoder(channels_last(chunk), history)
            history.first_chunk = False
            size = self.config.patch_size
            pixels = rearrange(pixels, "b (c q p) t h w -> b c t (h p) (w q)", p=size, q=size)
            yield ((pixels.float().clamp(-1, 1) + 1) / 2).clamp(0, 1)

    def frames(self, latents: Tensor | NDArray[np.float32]) -> Iterator[NDArray[np.uint8]]:
        """Decode to pictures in host memory, chunk by chunk as the call does.

        A chunk is yielded once the next one has been launched, so that a GPU need not wait for the caller.

        Args:
            latents: (1, c, t, h, w)

        Yields:
            uint8 RGB (frames, 16 h, 16 w, 3).
        """
        latents = latents if isinstance(latents, Tensor) else torch.tensor(latents)
        copies = (HostCopy(to_frames(pixels)) for pixels in self(latents))
        last = next(copies)
        for copy in copies:
            yield last.frames()
            last = copy
        yield last.frames()

    def warm_up(self) -> None:
        """Load and compile what a request needs, by decoding the smallest video that has every kind of chunk."""
        for _ in self.frames(torch.zeros(1, self.config.z_dim, 2, 1, 1)):
            pass

    def chunk_size(self, height: int, width: int) -> int:
        """Latent frames that are decoded together on this device: 1 to ``LATENTS_PER_CHUNK`` on a GPU.

        Args:
            height, width: latent rows and columns.
        """
        device = self.post_quant_conv.weight.device
        if device.type != "cuda":
            return max(1, CELLS_PER_CHUNK // (height * width))
        return self.chunk_on_card(height, width, torch.cuda.get_device_properties(device).total_memory)

    def chunk_on_card(self, height: int, width: int, card_bytes: int) -> int:
        """``chunk_size`` on a GPU with ``card_bytes`` of memory."""
        kept, more = self.peak_bytes(0, height, width), self.peak_bytes(1, height, width)
        fitting = int((CARD_SHARE * card_bytes - kept) // (more - kept))
        countable = (ELEMENTS // self._elements(height, width) - TIME_KERNEL + 1) // FRAMES_PER_LATENT
        return max(1, min(LATENTS_PER_CHUNK, fitting, countable))

    def peak_bytes(self, latents_per_chunk: int, height: int, width: int) -> int:
        """Bytes that decoding takes at most, besides the weights and cuDNN's scratch memory.

        A chunk is largest where the last block starts: its input, the same normed, and half as many channels twice.

        Args:
            height, width: latent rows and columns.
        """
        itemsize = self.post_quant_conv.weight.dtype.itemsize
        frames = latents_per_chunk * FRAMES_PER_LATENT + TIME_KERNEL - 1
        chunk = 3 * frames * self._elements(height, width)
        history = 0
        for level, block in enumerate(self.decoder.up_blocks):
            inputs = sum(m.in_channels for m in block.modules() if isinstance(m, CausalConv3d) and m.kernel_size[0] > 1)
            history += (TIME_KERNEL - 1) * inputs * height * width * 4**level
        return itemsize * (chunk + history)

    def _elements(self, height: int, width: int) -> int:
        """Count the numbers in a frame of the last block's input, the largest tensor."""
        inputs = self.config.decoder_base_dim * self.config.dim_mult[1]
        return inputs * height * width * 4 ** len(self.config.temporal_downsample)

    def _denormalized(self, latents: Tensor) -> Tensor:
        weight = self.post_quant_conv.weight
        mean, std = latent_statistics(self.config, weight.device)
        latents = latents.to(weight.device, torch.float32) * std + mean
        return self.post_quant_conv(latents.to(weight.dtype))
