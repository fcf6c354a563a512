"""The decoder of the sound autoencoder (Oobleck, Evans et al., 2024): latents to a waveform.

Shapes are (b, channels, time). Weight normalisation is folded into the weights when they are read.
"""

from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cosmos3_models.checkpoint.configs import SoundDecoderConfig

DILATIONS = (1, 3, 9)


class Snake(nn.Module):
    """x + sin(a x)^2 / b with a and b learnt per channel as logarithms (snake-beta; Lee et al., BigVGAN, 2022)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.empty(1, channels, 1))
        self.beta = nn.Parameter(torch.empty(1, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        """(b, channels, t) to the same."""
        return x + (self.alpha.exp() * x).sin().square() / (self.beta.exp() + 1e-9)


class ResidualUnit(nn.Module):
    """x plus a dilated convolution over seven steps and one over a single step, each after a snake."""

    def __init__(self, channels: int, dilation: int) -> None:
        super().__init__()
        self.snake1 = Snake(channels)
        self.conv1 = nn.Conv1d(channels, channels, 7, dilation=dilation, padding=3 * dilation)
        self.snake2 = Snake(channels)
        self.conv2 = nn.Conv1d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(b, channels, t) to the same."""
        return x + self.conv2(self.snake2(self.conv1(self.snake1(x))))


class OobleckDecoderBlock(nn.Module):
    """A transposed convolution that makes the signal ``stride`` times as long, then three residual units."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.snake1 = Snake(inputs)
        self.conv_t1 = nn.ConvTranspose1d(
            inputs, outputs, 2 * stride, stride, padding=-(-stride // 2), output_padding=stride % 2
        )
        self.res_unit1, self.res_unit2, self.res_unit3 = (ResidualUnit(outputs, d) for d in DILATIONS)

    def forward(self, x: Tensor) -> Tensor:
        """(b, inputs, t) to (b, outputs, t * stride)."""
        x = self.conv_t1(self.snake1(x))
        return self.res_unit3(self.res_unit2(self.res_unit1(x)))


class OobleckDecoder(nn.Module):
    """The layers of the decoder, with the names that they have in the checkpoint."""

    def __init__(self, config: SoundDecoderConfig) -> None:
        super().__init__()
        widths = [config.dec_dim * m for m in reversed((1, *config.dec_c_mults))]
        self.conv1 = nn.Conv1d(config.latent_dim, widths[0], 7, padding=3)
        self.block = nn.ModuleList(
            OobleckDecoderBlock(inputs, outputs, stride)
            for (inputs, outputs), stride in zip(pairwise(widths), reversed(config.dec_strides), strict=True)
        )
        self.snake1 = Snake(widths[-1])
        self.conv2 = nn.Conv1d(widths[-1], config.channels, 7, padding=3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Latents (b, latent_dim, t) to a waveform (b, channels, t * hop), about -1 to 1."""
        x = self.conv1(x)
        for block in self.block:
            x = block(x)
        return self.conv2(self.snake1(x))


class OobleckSoundDecoder(nn.Module):
    """Sound latents to a waveform."""

    def __init__(self, config: SoundDecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.decoder = OobleckDecoder(config)

    @torch.inference_mode()
    def forward(self, latents: Tensor) -> Tensor:
        """Decode a whole track.

        Args:
            latents: (1, latent_dim, t) of any float dtype, on any device.

        Returns:
            fp32 (channels, t * hop) in [-1, 1] on the model's device, ``config.sample_rate`` samples per second.
        """
        weight = self.decoder.conv1.weight
        return self.decoder(latents.to(weight.device, weight.dtype))[0].float().clamp(-1, 1)

    def waveform(self, latents: NDArray[np.float32]) -> NDArray[np.float32]:
        """Decode fp32 (1, latent_dim, t) in host memory to fp32 (channels, t * hop) in host memory."""
        return self(torch.tensor(latents)).cpu().numpy()

    def warm_up(self) -> None:
        """Load the libraries and kernels that a request needs, by decoding one latent frame."""
        self(torch.zeros(1, self.config.latent_dim, 1))
