"""What the encoder and the decoder of the causal video autoencoder (Wan 2.2) are built from.

Every convolution in time looks back only. A ``History`` holds the frames of one chunk that the next chunk needs, so any
chunking gives the same result. Shapes are (b, channels, frames, height, width) throughout.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from cosmos3_models.checkpoint.configs import VideoVAEConfig
from cosmos3_models.kernels import pixel_ops
from cosmos3_models.kernels.pixel_ops import channels_last

TIME_KERNEL = 3


class Norm(nn.Module):
    """``pixel_ops.norm`` with a learnt gain.

    Args:
        extra_dims: of the gain behind its channels: 2 for pictures, 3 for videos.
    """

    def __init__(self, channels: int, extra_dims: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.empty(channels, *(1,) * extra_dims))

    def forward(self, x: Tensor) -> Tensor:
        """(b, channels, ...) to the same."""
        return pixel_ops.norm(x, self.gamma)


class History:
    """The last input frames of every causal convolution, between the chunks of one video."""

    def __init__(self) -> None:
        self.first_chunk = True
        self._frames: dict[nn.Module, Tensor] = {}

    def extend(self, convolution: nn.Module, x: Tensor, norm: Norm | None = None, bias: Tensor | None = None) -> Tensor:
        """Put the last two frames before x in front of it; before the first frame there are zeros.

        Args:
            convolution: reads the result; its frames are remembered under it.
            x: (b, c, t, h, w)
            norm: None, or x is first replaced by silu(norm(x + bias)).
            bias: (c,) or None.

        Returns:
            (b, c, t + 2, h, w)
        """
        kept = TIME_KERNEL - 1
        _, channels, frames, height, width = x.shape
        padded = pixel_ops.empty(x, channels, kept + frames, height, width)
        padded[:, :, :kept] = self._frames.get(convolution, 0)
        if norm is None:
            padded[:, :, kept:] = x
        else:
            pixel_ops.norm_silu(x, bias, norm.gamma, padded[:, :, kept:])
        self._frames[convolution] = padded[:, :, -kept:].clone()
        return padded


class CausalConv3d(nn.Conv3d):
    """A convolution that sees the present and the two frames before it, and pads with zeros in space."""

    def __init__(self, inputs: int, outputs: int, kernel: tuple[int, int, int] = (TIME_KERNEL, 3, 3)) -> None:
        self._sides = (0, kernel[1] // 2, kernel[2] // 2)
        super().__init__(inputs, outputs, kernel, padding=self._sides)

    def step(self, x: Tensor, history: History, norm: Norm | None = None) -> Tensor:
        """Convolve the next frames (b, inputs, t, h, w) of a video to (b, outputs, t, h, w)."""
        return self(history.extend(self, x, norm))

    @property
    def shift(self) -> Tensor:
        """The bias (outputs,), which every instance has."""
        assert self.bias is not None
        return self.bias

    def forward(self, x: Tensor) -> Tensor:
        """(b, inputs, t + kernel[0] - 1, h, w) to (b, outputs, t, h, w)."""
        return pixel_ops.convolve(x, self.weight, self.bias, self._sides)

    def without_bias(self, x: Tensor) -> Tensor:
        """The call, but for the bias."""
        return pixel_ops.convolve(x, self.weight, None, self._sides)


class ResidualBlock(nn.Module):
    """Two normed causal convolutions, plus the input or, if the width changes, a convolution of it."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.norm1 = Norm(inputs, 3)
        self.conv1 = CausalConv3d(inputs, outputs)
        self.norm2 = Norm(outputs, 3)
        self.conv2 = CausalConv3d(outputs, outputs)
        if inputs != outputs:
            self.conv_shortcut = CausalConv3d(inputs, outputs, (1, 1, 1))

    def forward(self, x: Tensor, history: History) -> Tensor:
        """(b, inputs, t, h, w) to (b, outputs, t, h, w)."""
        # The biases are added by the operation that follows: on a GPU each would be a pass over memory of its own.
        hidden = self.conv1.without_bias(history.extend(self.conv1, x, self.norm1))
        hidden = self.conv2.without_bias(history.extend(self.conv2, hidden, self.norm2, self.conv1.shift))
        if not hasattr(self, "conv_shortcut"):
            return pixel_ops.add_bias_(hidden, self.conv2.shift, x)
        shortcut = self.conv_shortcut.without_bias(x)
        return pixel_ops.add_bias_(hidden, self.conv2.shift + self.conv_shortcut.shift, shortcut)


class FrameAttention(nn.Module):
    """Single-head attention among the positions of each frame."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = Norm(channels, 2)
        self.to_qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.proj = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(b, c, t, h, w) to the same."""
        frames = rearrange(x, "b c t h w -> (b t) c h w")
        query, key, value = rearrange(self.to_qkv(self.norm(frames)), "n (three c) h w -> three n 1 (h w) c", three=3)
        out = F.scaled_dot_product_attention(query, key, value)
        out = self.proj(rearrange(out, "n 1 (h w) c -> n c h w", h=x.shape[3]))
        return channels_last(x + rearrange(out, "(b t) c h w -> b c t h w", b=x.shape[0]))


class MidBlock(nn.Module):
    """Attention between two residual blocks."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.resnets = nn.ModuleList([ResidualBlock(channels, channels), ResidualBlock(channels, channels)])
        self.attentions = nn.ModuleList([FrameAttention(channels)])

    def forward(self, x: Tensor, history: History) -> Tensor:
        """(b, c, t, h, w) to the same."""
        x = self.attentions[0](self.resnets[0](x, history))
        return self.resnets[1](x, history)


def latent_statistics(config: VideoVAEConfig, device: torch.device) -> tuple[Tensor, Tensor]:
    """Mean and spread of each latent channel, fp32 (c, 1, 1, 1): the denoiser works on latents normalised by them."""
    mean, std = (
        torch.tensor(values, device=device)[:, None, None, None] for values in (config.latents_mean, config.latents_std)
    )
    return mean, std
