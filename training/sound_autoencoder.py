"""Train the sound autoencoder: waveform to latents and back.

python -m training.sound_autoencoder --out .gpu/demo --minutes 2
"""

import argparse
import math
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from cosmos3_models.autoencoders.sound_decoder import OobleckSoundDecoder, ResidualUnit
from cosmos3_models.checkpoint.configs import SoundDecoderConfig
from training import tone
from training.loop import Forward, Inputs, add_arguments, settings_of, train
from training.recipe import Recipe
from training.world import Draw, World

COMPONENT = "sound_autoencoder"
WINDOW_LATENTS = 16  # of sound that a step hears at a time
OUTPUT_SCALE = 0.05  # of the last layer at the start; a loud start unlearns its sound before it learns the right one
GAIN = 6.0  # of the latents: it makes their mean square 1 or so
LATENT_NOISE = 0.1  # added to the latents in training: the decoder must forgive what the transformer gets wrong
CLICK_WEIGHT = 0.5  # of the error of second differences, in which little is left of the notes


class SoundEncoder(nn.Module):
    """How loud each note and each step of a click is, in each channel: measured, not learnt.

    The public encoder is another one; serving needs neither.
    """

    analysis: Tensor

    def __init__(self, config: SoundDecoderConfig) -> None:
        super().__init__()
        self.channels, self.hop = config.channels, config.hop
        atoms = tone.atoms(config.hop, config.sample_rate)
        if self.channels * len(atoms) != config.latent_dim:
            raise ValueError(f"the world's sound has {self.channels} x {len(atoms)} latents, got {config.latent_dim}")
        self.register_buffer("analysis", GAIN * torch.linalg.pinv(atoms))

    def forward(self, waveform: Tensor) -> Tensor:
        """(b, channels, t * hop) to (b, latent_dim, t)."""
        frames = rearrange(waveform, "b c (t s) -> b c t s", s=self.hop)
        return rearrange(frames @ self.analysis, "b c t k -> b (c k) t")


class SoundAutoencoder(nn.Module):
    """Encoder and decoder; the decoder's modules are the served ones."""

    def __init__(self, config: SoundDecoderConfig) -> None:
        super().__init__()
        self.encoder = SoundEncoder(config)
        self.decoder = OobleckSoundDecoder(config)

    def forward(self, waveform: Tensor, noise: Tensor) -> Tensor:
        """Reconstruction; ``noise`` is standard normal in the latents' shape."""
        return self.decoder.decoder(self.encoder(waveform) + LATENT_NOISE * noise)


class SoundTask:
    """Short windows anywhere in the clips."""

    half = False  # bf16 has no more than eight bits of a waveform
    fp32: tuple[str, ...] = ()
    muon: str | None = None

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
        middle = relative_error(reconstruction.sum(1), waveform.sum(1))
        side = relative_error(reconstruction.diff(dim=1), waveform.diff(dim=1))
        click = relative_error(reconstruction.diff(n=2), waveform.diff(n=2))
        return {"loss": middle + side + CLICK_WEIGHT * click, "middle": middle, "side": side, "click": click}

    @torch.no_grad()
    def _waveform(self, draw: Draw) -> Tensor:
        hop = self.recipe.sound.hop
        count = min(WINDOW_LATENTS, self.recipe.sound_frames)
        start = int(draw.numpy.integers(self.recipe.sound_frames - count + 1))
        return self.world.waveform(self.world.scenes(draw, self.batch), start * hop, count * hop)


def relative_error(got: Tensor, expected: Tensor) -> Tensor:
    """Amplitude of the error in that of what was expected: the mean absolute error would first settle for silence."""
    return (F.mse_loss(got, expected) / expected.square().mean()).sqrt()


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
    add_arguments(parser, steps=100_000, minutes=2, batch=32, rate=2e-3)
    args = parser.parse_args(arguments)
    recipe = Recipe.read(args.recipe) if args.recipe else Recipe.read()
    train(SoundTask(recipe, args.batch, args.seed), settings_of(args, COMPONENT), torch.device(args.device))


if __name__ == "__main__":
    main()
