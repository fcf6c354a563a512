"""The encoder of the causal video autoencoder (Wan 2.2): pixels to the mean and spread of latents.

Serving makes videos and never reads them, so only training has it. It is built from the parts of the decoder, and
like it takes the first frame alone, then any number of fours.
"""

from itertools import pairwise

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from cosmos3_models.autoencoders.video_decoder import TIME_KERNEL, CausalConv3d, History, MidBlock, Norm, ResidualBlock
from cosmos3_models.checkpoint.configs import VideoVAEConfig
from cosmos3_models.kernels.pixel_ops import channels_last


class Downsampler(nn.Module):
    """Halves height and width, and with ``in_time`` the frames after the first."""

    def __init__(self, channels: int, *, in_time: bool) -> None:
        super().__init__()
        self.resample = nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(channels, channels, 3, stride=2))
        if in_time:
            self.time_conv = nn.Conv3d(channels, channels, (TIME_KERNEL, 1, 1), stride=(2, 1, 1))

    def forward(self, x: Tensor, history: History) -> Tensor:
        frames = self.resample(rearrange(x, "b c t h w -> (b t) c h w"))
        x = rearrange(frames, "(b t) c h w -> b c t h w", b=x.shape[0])
        if not hasattr(self, "time_conv"):
            return x
        extended = history.extend(self.time_conv, x)[:, :, 1:]  # one frame of the past, not two
        return x if history.first_chunk else self.time_conv(extended)


class DownBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, blocks: int, *, downsample: bool, in_time: bool) -> None:
        super().__init__()
        self.outputs = outputs
        self.time_factor = 2 if in_time else 1
        self.side_factor = 2 if downsample else 1
        widths = [inputs] + [outputs] * blocks
        self.resnets = nn.ModuleList(ResidualBlock(a, b) for a, b in pairwise(widths))
        if downsample:
            self.downsampler = Downsampler(outputs, in_time=in_time)

    def forward(self, x: Tensor, history: History) -> Tensor:
        shortcut = self._averaged(x)
        for block in self.resnets:
            x = block(x, history)
        return (self.downsampler(x, history) if hasattr(self, "downsampler") else x) + shortcut

    def _averaged(self, x: Tensor) -> Tensor:
        """The block's input on the smaller grid without weights: groups of pixels and channels become their mean."""
        x = F.pad(x, (0, 0, 0, 0, -x.shape[2] % self.time_factor, 0))
        x = rearrange(
            x,
            "b c (t s) (h p) (w q) -> b (c s p q) t h w",
            s=self.time_factor,
            p=self.side_factor,
            q=self.side_factor,
        )
        return channels_last(rearrange(x, "b (c g) t h w -> b c g t h w", c=self.outputs).mean(2))


class Encoder(nn.Module):
    def __init__(self, config: VideoVAEConfig, base_dim: int) -> None:
        super().__init__()
        widths = [base_dim * m for m in (1, *config.dim_mult)]
        in_time = (*config.temporal_downsample, False)
        last = len(in_time) - 1
        self.conv_in = CausalConv3d(config.out_channels, widths[0])
        self.down_blocks = nn.ModuleList(
            DownBlock(a, b, config.num_res_blocks, downsample=i < last, in_time=in_time[i])
            for i, (a, b) in enumerate(pairwise(widths))
        )
        self.mid_block = MidBlock(widths[-1])
        self.norm_out = Norm(widths[-1], 3)
        self.conv_out = CausalConv3d(widths[-1], 2 * config.z_dim)

    def forward(self, x: Tensor, history: History) -> Tensor:
        x = self.conv_in.step(x, history)
        for block in self.down_blocks:
            x = block(x, history)
        return self.conv_out.step(F.silu(self.norm_out(self.mid_block(x, history))), history)


class VideoEncoder(nn.Module):
    """Pixels to latents, in the names of the public checkpoint.

    Args:
        base_dim: the encoder's width, a field of ``vae/config.json`` that serving does not read.
    """

    def __init__(self, config: VideoVAEConfig, base_dim: int) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config, base_dim)
        self.quant_conv = CausalConv3d(2 * config.z_dim, 2 * config.z_dim, (1, 1, 1))

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance (b, z, t, h, w) of the latents of (b, 3, 4 t - 3, 16 h, 16 w) in [-1, 1]."""
        size = self.config.patch_size
        x = rearrange(pixels, "b c t (h p) (w q) -> b (c q p) t h w", p=size, q=size)
        history = History()
        latents = []
        for chunk in (x[:, :, :1], x[:, :, 1:]):
            if chunk.shape[2]:
                latents.append(self.encoder(chunk, history))
            history.first_chunk = False
        mean, log_variance = self.quant_conv(torch.cat(latents, dim=2)).chunk(2, dim=1)
        return mean, log_variance
