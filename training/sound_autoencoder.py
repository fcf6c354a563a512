"""Train the sound autoencoder: waveform to latents and back.

python -m training.sound_autoencoder --out .gpu/demo --minutes 3
"""

import argparse
import math
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cosmos3_models.config import SoundDecoderConfig
from cosmos3_models.sound_decoder import ResidualUnit, Snake, SoundDecoder
from training.loop import Forward, Inputs, add_arguments, settings_of, train
from training.recipe import Recipe
from training.world import Draw, World

COMPONENT = "sound_autoencoder"
WINDOW_LATENTS = 16  # of sound that a step hears at a time
OUTPUT_SCALE = 0.05  # of the last layer at the start; a loud start unlearns its sound before it learns the right one
LATENT_NOISE = 0.1  # added to the latents in training: the decoder must forgive what the transformer gets wrong
SPECTRUM_WEIGHT = 0.1
LOG_SPECTRUM_WEIGHT = 0.02
WINDOWS = (128, 512, 2048)  # samples of the spectra's windows
SPECTRUM_FLOOR = 1e-3


class SoundEncoder(nn.Module):
    """The decoder's mirror image. Its latents have mean 0 and spread 1, for the public format scales none.

    The public encoder is another one; serving needs neither.
    """

    def __init__(self, config: SoundDecoderConfig) -> None:
        super().__init__()
        widths = [config.dec_dim * m for m in (1, *config.dec_c_mults)]
        layers: list[nn.Module] = [nn.Conv1d(config.channels, widths[0], 7, padding=3)]
        for inputs, outputs, stride in zip(widths, widths[1:], config.dec_strides, strict=False):
            layers += [
                ResidualUnit(inputs, 1),
                Snake(inputs),
                nn.Conv1d(inputs, outputs, 2 * stride, stride, padding=-(-stride // 2)),
            ]
        layers += [Snake(widths[-1]), nn.Conv1d(widths[-1], config.latent_dim, 3, padding=1)]
        self.layers = nn.Sequential(*layers)
        self.standard = nn.BatchNorm1d(config.latent_dim, affine=False)

    def forward(self, waveform: Tensor) -> Tensor:
        """(b, channels, t * hop) to (b, latent_dim, t)."""
        return self.standard(self.layers(waveform))


class SoundAutoencoder(nn.Module):
    """Encoder and decoder; the decoder's modules are the served ones."""

    def __init__(self, config: SoundDecoderConfig) -> None:
        super().__init__()
        self.encoder = SoundEncoder(config)
        self.decoder = SoundDecoder(config)

    def forward(self, waveform: Tensor, noise: Tensor) -> Tensor:
        """Reconstruction; ``noise`` is standard normal in the latents' shape."""
        return self.decoder.decoder(self.encoder(waveform) + LATENT_NOISE * noise)


class SoundTask:
    """Short windows anywhere in the clips."""

    half = False  # bf16 has no more than eight bits of a waveform
    fp32: tuple[str, ...] = ()

    def __init__(self, recipe: Recipe, batch: int, seed: int) -> None:
        self.world = World.of(recipe)
        self.recipe = recipe
        self.batch = batch
        torch.manual_seed(seed)
        self.module = build(recipe)

    def parts(self, draw: Draw, progress: float) -> Iterable[Inputs]:
        """Waveforms and latent noise."""
        del progress
        waveform = self._waveform(draw)
        shape = (len(waveform), self.recipe.sound.latent_dim, waveform.shape[2] // self.recipe.sound.hop)
        return [(waveform, torch.randn(shape, generator=draw.torch, device=waveform.device))]

    def losses(self, forward: Forward, *inputs: Tensor) -> dict[str, Tensor]:
        waveform, noise = inputs
        reconstruction = forward(waveform, noise)
        square = F.mse_loss(reconstruction, waveform)
        # Amplitude of the error in that of the sound: the mean absolute error would first settle for silence.
        wave = (square / waveform.square().mean()).sqrt()
        spectrum, log_spectrum = spectral_errors(reconstruction, waveform)
        loss = wave + SPECTRUM_WEIGHT * spectrum + LOG_SPECTRUM_WEIGHT * log_spectrum
        return {"loss": loss, "wave": wave, "spectrum": spectrum, "log_spectrum": log_spectrum, "square": square}

    @torch.no_grad()
    def _waveform(self, draw: Draw) -> Tensor:
        hop = self.recipe.sound.hop
        count = min(WINDOW_LATENTS, self.recipe.sound_frames)
        start = int(draw.numpy.integers(self.recipe.sound_frames - count + 1))
        return self.world.waveform(self.world.scenes(draw, self.batch), start * hop, count * hop)


def spectral_errors(got: Tensor, expected: Tensor) -> tuple[Tensor, Tensor]:
    """Mean distance of the magnitudes of spectra, relative to the mean magnitude, and of their logarithms."""
    linear, logarithmic = [], []
    for size in WINDOWS:
        a, b = (_magnitudes(waveform.flatten(0, 1), size) for waveform in (got, expected))
        linear.append((a - b).abs().mean() / b.mean().clamp_min(SPECTRUM_FLOOR))
        logarithmic.append(((a + SPECTRUM_FLOOR).log() - (b + SPECTRUM_FLOOR).log()).abs().mean())
    return torch.stack(linear).mean(), torch.stack(logarithmic).mean()


def _magnitudes(waveform: Tensor, size: int) -> Tensor:
    window = torch.hann_window(size, device=waveform.device)
    spectrum = torch.stft(waveform, size, size // 4, window=window, return_complex=True, normalized=True)
    return (spectrum.real.square() + spectrum.imag.square() + 1e-10).sqrt()


def build(recipe: Recipe) -> SoundAutoencoder:
    """The autoencoder at the start of training: unit activations, residual branches silent, the output near silence."""
    module = SoundAutoencoder(recipe.sound)
    for name, parameter in module.named_parameters():
        if parameter.ndim == 1 or name.endswith(("alpha", "beta")):
            nn.init.zeros_(parameter)
    for layer in module.modules():
        if isinstance(layer, nn.ConvTranspose1d):  # two taps reach every sample
            nn.init.normal_(layer.weight, std=1 / math.sqrt(2 * layer.in_channels))
        elif isinstance(layer, nn.Conv1d):
            nn.init.normal_(layer.weight, std=1 / math.sqrt(layer.weight[0].numel()))
    for layer in module.modules():
        if isinstance(layer, ResidualUnit):
            nn.init.zeros_(layer.conv2.weight)
    with torch.no_grad():
        module.decoder.decoder.conv2.weight.mul_(OUTPUT_SCALE)
    return module


def main(arguments: list[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, steps=100_000, minutes=3, batch=64, rate=2e-3)
    args = parser.parse_args(arguments)
    recipe = Recipe.read(args.recipe) if args.recipe else Recipe.read()
    train(SoundTask(recipe, args.batch, args.seed), settings_of(args, COMPONENT), torch.device(args.device))


if __name__ == "__main__":
    main()
