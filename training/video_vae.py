"""Train the video autoencoder: pixels to latents and back.

python -m training.video_vae --out .gpu/demo --minutes 7
"""

import argparse
import math
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from cosmos3_models.autoencoders.video_decoder import WanVideoDecoder
from cosmos3_models.autoencoders.video_encoder import WanVideoEncoder
from cosmos3_models.autoencoders.video_layers import History
from cosmos3_models.checkpoint.configs import VideoVAEConfig
from cosmos3_models.shapes import LatentGrid
from training.loop import Forward, Inputs, add_arguments, settings_of, train
from training.recipe import Recipe
from training.world import Draw, World

COMPONENT = "video_vae"
WINDOW = 96  # pixels of the square that most steps see: what matters is near a shape
WINDOW_FRAMES = 17
WHOLE_FROM = 0.8  # of the schedule; then steps see whole clips, fewer at a time
SHAPE_WEIGHT = 4.0  # of a fully saturated pixel over a grey one
EDGE_WEIGHT = 1.0  # of the error of differences between neighbouring pixels: sharp outlines
KL_WEIGHT = 5e-4  # keeps the latents smooth and their noise near what the decoder forgives
# At the start neither noise nor biases may drown what the latents say.
FIRST_BIAS = 0.5
FIRST_GAIN = 5.0  # of the latents
FIRST_LOG_VARIANCE = -6.0
LOG_VARIANCE_RANGE = (-12.0, 4.0)


class VideoAutoencoder(nn.Module):
    """The served encoder and decoder."""

    def __init__(self, config: VideoVAEConfig) -> None:
        super().__init__()
        self.encoder = WanVideoEncoder(config)
        self.decoder = WanVideoDecoder(config)

    def forward(self, pixels: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Reconstruction, mean and log variance; ``noise`` is standard normal in the latents' shape."""
        mean, log_variance = encode(self.encoder, pixels)
        log_variance = log_variance.float().clamp(*LOG_VARIANCE_RANGE)
        latents = mean.float() + (log_variance / 2).exp() * noise
        return decode(self.decoder, latents).float(), mean.float(), log_variance


def encode(encoder: WanVideoEncoder, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and log variance (b, c, t, h, w) of the latents of (b, 3, 4 t - 3, 16 h, 16 w) in [-1, 1].

    The served encode without its normalisation: the first frame alone, then all others at once.
    """
    history = History()
    chunks = [chunk for chunk in (pixels[:, :, :1], pixels[:, :, 1:]) if chunk.shape[2]]
    moments = torch.cat([encoder.moments(chunk, history) for chunk in chunks], dim=2)
    mean, log_variance = moments.chunk(2, dim=1)
    return mean, log_variance


def decode(decoder: WanVideoDecoder, latents: Tensor) -> Tensor:
    """Pixels (b, 3, 4 t - 3, 16 h, 16 w), about -1 to 1, of latents as the encoder leaves them.

    The served decode without its normalisation and clamps: the first frame alone, then all others at once.
    """
    latents = decoder.post_quant_conv(latents.to(decoder.post_quant_conv.weight.dtype))
    history = History()
    chunks = []
    for chunk in (latents[:, :, :1], latents[:, :, 1:]):
        if chunk.shape[2]:
            chunks.append(decoder.decoder(chunk, history))
        history.first_chunk = False
    size = decoder.config.patch_size
    return rearrange(torch.cat(chunks, dim=2), "b (c q p) t h w -> b c t (h p) (w q)", p=size, q=size)


class VideoTask:
    """Windows around the shapes first, whole clips at the end."""

    half = True
    fp32: tuple[str, ...] = ()
    muon: str | None = None

    def __init__(self, recipe: Recipe, batch: int, seed: int, *, decoder_only: bool = False) -> None:
        self.world = World.of(recipe)
        self.batch = batch
        torch.manual_seed(seed)
        self.module = build(recipe)
        self.module.encoder.requires_grad_(not decoder_only)

    def parts(self, draw: Draw, progress: float) -> Iterable[Inputs]:
        """Pixels and latent noise."""
        pixels = self._pixels(draw, progress)
        b, _, t, h, w = pixels.shape
        shape = (b, self.module.decoder.config.z_dim, *_latent_size(t, h, w))
        return [(pixels, torch.randn(shape, generator=draw.torch, device=pixels.device))]

    def losses(self, forward: Forward, *inputs: Tensor) -> dict[str, Tensor]:
        pixels, noise = inputs
        reconstruction, mean, log_variance = forward(pixels, noise)
        error, edge = pixel_error(reconstruction, pixels), edge_error(reconstruction, pixels)
        kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
        loss = error + EDGE_WEIGHT * edge + KL_WEIGHT * kl
        return {"loss": loss, "error": error, "edge": edge, "kl": kl, "square": F.mse_loss(reconstruction, pixels)}

    @torch.no_grad()
    def _pixels(self, draw: Draw, progress: float) -> Tensor:
        whole = self.world.side <= WINDOW or progress >= WHOLE_FROM
        share = WINDOW**2 * WINDOW_FRAMES / (self.world.side**2 * self.world.num_frames)
        count = max(1, round(self.batch * min(1, share))) if whole else self.batch
        scene = self.world.scenes(draw, count)
        return self.world.frames(scene) if whole else self.world.windows(scene, draw, WINDOW, WINDOW_FRAMES)


def pixel_error(got: Tensor, expected: Tensor) -> Tensor:
    """Mean of the absolute and the squared error, where a coloured pixel counts more than a grey one.

    The absolute error alone is least where everything is background: shapes cover less than half of any place.
    """
    chroma = (expected.amax(1, keepdim=True) - expected.amin(1, keepdim=True)) / 2
    weight = 1 + SHAPE_WEIGHT * chroma
    error = (got - expected).abs()
    return ((error + error.square()) * weight).mean() / weight.mean()


def edge_error(got: Tensor, expected: Tensor) -> Tensor:
    """Mean absolute error of the differences between neighbours across, down and in time."""
    error = got - expected
    return torch.stack([error.diff(dim=dim).abs().mean() for dim in (2, 3, 4)]).mean()


def build(recipe: Recipe) -> VideoAutoencoder:
    """The autoencoder at the start of training: residual branches are silent, so it begins as its shortcuts.

    The norms keep the direction of a pixel's channels only. Without a bias in front, bright and dark would look alike.
    """
    module = VideoAutoencoder(recipe.video_vae)
    for name, parameter in module.named_parameters():
        if name.endswith("gamma"):
            nn.init.ones_(parameter)
        elif name.endswith("conv_in.bias"):
            nn.init.normal_(parameter, std=FIRST_BIAS)
        elif name.endswith("bias") or any(part in name for part in (".conv2.", ".proj.")):
            nn.init.zeros_(parameter)
        else:
            nn.init.normal_(parameter, std=1 / math.sqrt(parameter[0].numel()))
    with torch.no_grad():
        module.encoder.encoder.conv_out.weight.mul_(FIRST_GAIN)
        biases = dict(module.encoder.named_parameters())["quant_conv.bias"]
        biases[recipe.video_vae.z_dim :] = FIRST_LOG_VARIANCE
    return module


def _latent_size(frames: int, height: int, width: int) -> tuple[int, int, int]:
    grid = LatentGrid.of_video(frames, height, width)
    return grid.frames, grid.height, grid.width


def main(arguments: list[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, steps=100_000, minutes=7, batch=16, rate=1.5e-3)
    add = parser.add_argument
    add("--decoder-only", action="store_true", help="leave the encoder, and with it all latents, as --start has it")
    args = parser.parse_args(arguments)
    recipe = Recipe.read(args.recipe) if args.recipe else Recipe.read()
    task = VideoTask(recipe, args.batch, args.seed, decoder_only=args.decoder_only)
    train(task, settings_of(args, COMPONENT), torch.device(args.device))


if __name__ == "__main__":
    main()
