"""The decoder of the sound autoencoder (Oobleck with snake activations): latents to a waveform.

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
    """x + sin(a x)^2 / b with a and b learnt per channel as logarithms (BigVGAN's snake-beta)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.empty(1, channels, 1))
        self.beta = nn.Parameter(torch.empty(1, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x + (self.alpha.exp() * x).sin().square() / (self.beta.exp() + 1e-9)


class ResidualUnit(nn.Module):
    def __init__(self, channels: int, dilation: int) -> None:
        super().__init__()
        self.snake1 = Snake(channels)
        self.conv1 = nn.Conv1d(channels, channels, 7, dilation=dilation, padding=3 * dilation)
        self.snake2 = Snake(channels)
        self.conv2 = nn.Conv1d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(self.snake2(self.conv1(self.snake1(x))))


class OobleckDecoderBlock(nn.Module):
    """``stride`` times as long."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.snake1 = Snake(inputs)
        self.conv_t1 = nn.ConvTranspose1d(
            inputs, outputs, 2 * stride, stride, padding=-(-stride // 2), output_padding=stride % 2
        )
        self.res_unit1, self.res_unit2, self.res_unit3 = (ResidualUnit(outputs, d) for d in DILATIONS)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_t1(self.snake1(x))
        return self.res_unit3(self.res_unit2(self.res_unit1(x)))


class OobleckDecoder(nn.Module):
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
        """Decode (1, latent_dim, t) of any float dtype to fp32 (channels, t * hop) in [-1, 1]."""
        weight = self.decoder.conv1.weight
        return self.decoder(latents.to(weight.device, weight.dtype))[0].float().clamp(-1, 1)

    def waveform(self, latents: NDArray[np.float32]) -> NDArray[np.float32]:
        """The same from and to host memory."""
        return self(torch.tensor(latents)).cpu().numpy()

    def warm_up(self) -> None:
        """Load what a request needs."""
        self(torch.zeros(1, self.config.latent_dim, 1))
