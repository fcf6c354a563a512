"""The decoder of the causal video autoencoder (Wan 2.2): latents to pixels, a chunk of latent frames at a time.

Every convolution in time looks back only. What it must remember of one chunk for the next lives in a ``History``,
so any chunking gives the same video. Shapes are (b, channels, frames, height, width) throughout.
"""

import math
from collections.abc import Iterator
from itertools import pairwise

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from cosmos3_models.config import VideoVAEConfig

TIME_KERNEL = 3
CELLS_PER_CHUNK = 1024  # latent positions that a chunk holds at most, unless one frame has more: bounds the memory


class History:
    """The last input frames of every causal convolution, between the chunks of one video."""

    def __init__(self) -> None:
        self.first_chunk = True
        self._frames: dict[nn.Module, Tensor] = {}

    def extend(self, convolution: nn.Module, x: Tensor) -> Tensor:
        """x with the frames before it in front; before the first there are zeros."""
        past = self._frames.get(convolution)
        if past is None:
            past = x.new_zeros(*x.shape[:2], TIME_KERNEL - 1, *x.shape[3:])
        x = torch.cat([past, x], dim=2)
        self._frames[convolution] = x[:, :, 1 - TIME_KERNEL :].clone()
        return x


class CausalConv3d(nn.Conv3d):
    """A convolution that sees the present and the two frames before it, and pads with zeros in space."""

    def __init__(self, inputs: int, outputs: int, kernel: tuple[int, int, int] = (TIME_KERNEL, 3, 3)) -> None:
        super().__init__(inputs, outputs, kernel, padding=(0, kernel[1] // 2, kernel[2] // 2))

    def step(self, x: Tensor, history: History) -> Tensor:
        return self(history.extend(self, x))


class Norm(nn.Module):
    """Each pixel's channels scaled to length sqrt(channels), then by a learnt gain."""

    def __init__(self, channels: int, extra_dims: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.empty(channels, *(1,) * extra_dims))

    def forward(self, x: Tensor) -> Tensor:
        length = math.sqrt(x.shape[1])
        return F.normalize(x.float(), dim=1).to(x.dtype) * length * self.gamma


class ResidualBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.norm1 = Norm(inputs, 3)
        self.conv1 = CausalConv3d(inputs, outputs)
        self.norm2 = Norm(outputs, 3)
        self.conv2 = CausalConv3d(outputs, outputs)
        if inputs != outputs:
            self.conv_shortcut = CausalConv3d(inputs, outputs, (1, 1, 1))

    def forward(self, x: Tensor, history: History) -> Tensor:
        shortcut = self.conv_shortcut(x) if hasattr(self, "conv_shortcut") else x
        x = self.conv1.step(F.silu(self.norm1(x)), history)
        return self.conv2.step(F.silu(self.norm2(x)), history) + shortcut


class FrameAttention(nn.Module):
    """Single-head attention among the positions of each frame."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = Norm(channels, 2)
        self.to_qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.proj = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        frames = rearrange(x, "b c t h w -> (b t) c h w")
        query, key, value = rearrange(self.to_qkv(self.norm(frames)), "n (three c) h w -> three n 1 (h w) c", three=3)
        out = F.scaled_dot_product_attention(query, key, value)
        out = self.proj(rearrange(out, "n 1 (h w) c -> n c h w", h=x.shape[3]))
        return x + rearrange(out, "(b t) c h w -> b c t h w", b=x.shape[0])


class MidBlock(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.resnets = nn.ModuleList([ResidualBlock(channels, channels), ResidualBlock(channels, channels)])
        self.attentions = nn.ModuleList([FrameAttention(channels)])

    def forward(self, x: Tensor, history: History) -> Tensor:
        x = self.attentions[0](self.resnets[0](x, history))
        return self.resnets[1](x, history)


class Upsampler(nn.Module):
    """Doubles height and width, and with ``in_time`` every frame but the video's first."""

    def __init__(self, channels: int, *, in_time: bool) -> None:
        super().__init__()
        upsample = nn.Upsample(scale_factor=2, mode="nearest-exact")
        self.resample = nn.Sequential(upsample, nn.Conv2d(channels, channels, 3, padding=1))
        if in_time:
            self.time_conv = CausalConv3d(channels, 2 * channels, (TIME_KERNEL, 1, 1))

    def forward(self, x: Tensor, history: History) -> Tensor:
        # The first frame is neither doubled nor remembered: time_conv takes the second to be the start.
        if hasattr(self, "time_conv") and not history.first_chunk:
            x = rearrange(self.time_conv.step(x, history), "b (two c) t h w -> b c (t two) h w", two=2)
        frames = self.resample(rearrange(x, "b c t h w -> (b t) c h w"))
        return rearrange(frames, "(b t) c h w -> b c t h w", b=x.shape[0])


class UpBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, blocks: int, *, upsample: bool, in_time: bool) -> None:
        super().__init__()
        self.outputs = outputs
        self.time_factor = 2 if in_time else 1
        widths = [inputs] + [outputs] * blocks
        self.resnets = nn.ModuleList(ResidualBlock(a, b) for a, b in pairwise(widths))
        if upsample:
            self.upsampler = Upsampler(outputs, in_time=in_time)

    def forward(self, x: Tensor, history: History) -> Tensor:
        block_input = x
        for block in self.resnets:
            x = block(x, history)
        if not hasattr(self, "upsampler"):
            return x
        return self.upsampler(x, history) + self._repeated(block_input, history)

    def _repeated(self, x: Tensor, history: History) -> Tensor:
        """The block's input spread over the larger grid without weights."""
        copies = self.outputs * self.time_factor * 4 // x.shape[1]
        x = rearrange(
            x.repeat_interleave(copies, dim=1),
            "b (c s p q) t h w -> b c (t s) (h p) (w q)",
            s=self.time_factor,
            p=2,
            q=2,
        )
        return x[:, :, self.time_factor - 1 :] if history.first_chunk else x


class Decoder(nn.Module):
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
        x = self.mid_block(self.conv_in.step(x, history), history)
        for block in self.up_blocks:
            x = block(x, history)
        return self.conv_out.step(F.silu(self.norm_out(x)), history)


class VideoDecoder(nn.Module):
    """Video latents to pixels."""

    def __init__(self, config: VideoVAEConfig) -> None:
        super().__init__()
        self.config = config
        self.post_quant_conv = CausalConv3d(config.z_dim, config.z_dim, (1, 1, 1))
        self.decoder = Decoder(config)

    @torch.inference_mode()
    def forward(self, latents: Tensor, latents_per_chunk: int | None = None) -> Iterator[Tensor]:
        """Decode chunk by chunk.

        Args:
            latents: (1, c, t, h, w) as the denoiser leaves them, any float dtype, on any device.
            latents_per_chunk: latent frames at a time, by default as many as ``CELLS_PER_CHUNK`` allows.

        Yields:
            fp32 (1, 3, frames, 16 h, 16 w) in [0, 1]: one frame, then 4 to a latent frame.
        """
        history = History()
        latents = self._denormalized(latents)
        latents_per_chunk = latents_per_chunk or max(1, CELLS_PER_CHUNK // latents[0, 0, 0].numel())
        first, rest = latents[:, :, :1], latents[:, :, 1:]
        for chunk in (first, *rest.split(latents_per_chunk, dim=2)) if rest.shape[2] else (first,):
            pixels = self.decoder(chunk, history)
            history.first_chunk = False
            size = self.config.patch_size
            pixels = rearrange(pixels, "b (c q p) t h w -> b c t (h p) (w q)", p=size, q=size)
            yield ((pixels.float().clamp(-1, 1) + 1) / 2).clamp(0, 1)

    def _denormalized(self, latents: Tensor) -> Tensor:
        weight = self.post_quant_conv.weight
        mean, std = (
            torch.tensor(values, device=weight.device)[:, None, None, None]
            for values in (self.config.latents_mean, self.config.latents_std)
        )
        latents = latents.to(weight.device, torch.float32) * std + mean
        return self.post_quant_conv(latents.to(weight.dtype))


def to_frames(pixels: Tensor) -> Tensor:
    """(1, 3, t, h, w) in [0, 1] to uint8 (t, h, w, 3), rounded to nearest."""
    frames = rearrange(pixels, "1 c t h w -> t h w c")
    return (frames * 255).round().to(torch.uint8).contiguous()
