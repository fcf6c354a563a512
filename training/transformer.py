"""Train both towers by flow matching on video and sound together.

python -m training.transformer --out .gpu/demo --minutes 22 --compile
"""

import argparse
import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cosmos3_models.kernels.token_ops import Rotary
from cosmos3_models.sampling.schedules import TRAIN_TIMESTEPS
from cosmos3_models.shapes import LatentGrid
from cosmos3_models.text.prompt import PromptEncoder
from cosmos3_models.transformer.generation_tower import Condition, Streams
from cosmos3_models.transformer.layers import Block
from cosmos3_models.transformer.model import Transformer
from cosmos3_models.transformer.positions import rotary, sound_positions, text_positions, video_positions
from cosmos3_models.transformer.precision import DIFFERENTIABLE
from training import latents, tone
from training.latents import Cache
from training.loop import Forward, Inputs, add_arguments, settings_of, train
from training.recipe import Recipe, Shares
from training.world import Draw

COMPONENT = "transformer"
GROUPS = 4  # parts of a batch; the captions of a part have one length, so that no token is padding
DROPPED_SHARE = 0.1  # of the parts see the negative prompt or an empty one, for guidance
SILENT_SHARE = 0.15  # of the parts have no sound
SOUND_WEIGHT = 0.5
CLICK_WEIGHT = 20.0  # of a sound latent that stands for clicks over one for a note; 7 in 1,000 are not silent
SHAPE_WEIGHT = 8.0  # of a latent that stands for a fully saturated pixel over one of grey
HIDDEN = 8  # power of the noise level by which that is less: in much noise nobody knows yet where a shape will be
LARGEST_SIGMA = 0.9999


@dataclass(frozen=True)
class Part:
    """Clips whose texts have the same number of tokens.

    Attributes:
        streams: latents without noise; those marked as clean get none.
        colour: (b, t, h, w) of the video, as in ``Cache``.
        ids: int64 (b, n).
    """

    streams: Streams
    colour: Tensor
    ids: Tensor


@dataclass(frozen=True)
class Sort:
    """What a share of the micro-batches is made of.

    Attributes:
        frames: latent frames of the video.
        clean: how many of them, from the first one on, have no noise.
        lengths: (m,) of the captions that fit, in tokens.
        of_length: where those of a length are in ``Cache.lengths``, flat.
    """

    share: float
    frames: int
    clean: int
    lengths: np.ndarray
    of_length: dict[int, Tensor]


class Trainable(nn.Module):
    """The served towers, without the inference mode that their entry points run in."""

    def __init__(self, transformer: Transformer, fps: float) -> None:
        super().__init__()
        self.model = transformer
        self.fps = fps
        self._positions = lru_cache(maxsize=None)(self._rotary)

    def forward(self, streams: Streams, timesteps: Tensor, ids: Tensor) -> Streams:
        """The velocity of noisy ``streams`` at ``timesteps`` (b,)."""
        frames = None if streams.sound is None else streams.sound.shape[2]
        grid = LatentGrid(*streams.video.shape[2:])
        text, media = self._positions(ids.shape[1], grid, frames, self.model.device)
        condition = Condition(self.model.text([ids], [text], DIFFERENTIABLE)[0], media)
        return self.model.generation(streams, timesteps[:, None, None], condition, DIFFERENTIABLE)

    def _rotary(self, length: int, grid: LatentGrid, frames: int | None, device: torch.device) -> tuple[Rotary, Rotary]:
        """Tables of the text and of the media tokens behind it."""
        config = self.model.config
        offset = length + config.media_position_offset
        media = [video_positions(grid.patches(config.latent_patch_size), offset, self.fps, config)]
        if frames is not None:
            media.append(sound_positions(frames, offset, config))
        return (
            rotary(text_positions(length), config, device, torch.float32),
            rotary(torch.cat(media, dim=1), config, device, torch.float32),
        )


class TransformerTask:
    """Batches from the cache of latents."""

    half = True
    fp32: tuple[str, ...] = ("model.generation.time_embedder.",)
    muon: str | None = ".layers."

    def __init__(self, recipe: Recipe, cache: Cache, prompts: PromptEncoder, batch: int, seed: int) -> None:
        self.shift = recipe.generation.flow_shift
        self.cache = cache
        self.batch = batch
        device = cache.video.device  # copies are made here, for in a step each would wait until a GPU is idle
        self.sound_weights = sound_weights(recipe).to(device)
        self.empty = [torch.from_numpy(ids).to(device) for ids in _unconditional(recipe, prompts)]
        self._sorts = _sorts(recipe.shares, cache, batch // GROUPS)
        torch.manual_seed(seed)
        self.module = Trainable(build(recipe), recipe.fps)

    def parts(self, draw: Draw, progress: float) -> Iterable[Inputs]:
        """Token ids, noise levels, which frames are clean, weights of the video latents, then data and noise of each
        stream.
        """
        del progress
        for _ in range(GROUPS):
            part = self._part(draw)
            sigma = draw_sigmas(len(part.ids), self.shift, draw)
            pairs = [(stream, _normal(stream, draw)) for stream in part.streams.present]
            clean = part.streams.clean
            assert clean is not None, "marked even where no frame is clean: all sorts of parts share their recordings"
            yield part.ids, sigma, clean, weights(part.colour, sigma), *chain(*pairs)

    def losses(self, forward: Forward, *inputs: Tensor) -> dict[str, Tensor]:
        ids, sigma, clean, weight, *streams = inputs
        data, noise = streams[::2], streams[1::2]
        mixed = [_mixed(x, e, sigma) for x, e in zip(data, noise, strict=True)]
        noisy = Streams(*data)._replace(clean=clean).replaced(mixed)
        velocity = forward(noisy, (sigma * TRAIN_TIMESTEPS).floor(), ids)
        errors = [(v.float() - (e - x)).square() for v, e, x in zip(velocity.present, noise, data, strict=True)]
        made = clean.logical_not()[:, None, None]  # of the video: nobody asks for the velocity of what is given
        weight = weight * made
        loss = (errors[0].mean(1) * weight).mean() / weight.mean()
        sound = torch.zeros_like(loss)
        if len(errors) > 1:
            sound = errors[1].mean()
            loss = loss + SOUND_WEIGHT * (errors[1] * self.sound_weights).mean()
        video = (errors[0] * made).mean() / made.float().mean()
        return {"loss": loss, "video": video, "sound": sound}

    def _part(self, draw: Draw) -> Part:
        """Clips and captions of one length; now and then without captions, or without sound."""
        random, captions = draw.numpy, self.cache.lengths.shape[1]
        sort = self._sorts[random.choice(len(self._sorts), p=[sort.share for sort in self._sorts])]
        length = sort.lengths[random.integers(len(sort.lengths))]
        same = sort.of_length[length]
        chosen = same[torch.randint(len(same), (self.batch // GROUPS,), generator=draw.torch, device=same.device)]
        clips = chosen // captions
        video, sound = self.cache.video[clips, :, : sort.frames].float(), self.cache.sound[clips].float()
        ids = self.cache.ids[clips, chosen % captions, :length].long()
        if random.random() < DROPPED_SHARE:
            empty = self.empty[random.integers(len(self.empty))]
            ids = empty.expand(len(ids), -1)
        silent = random.random() < SILENT_SHARE or sort.frames == 1
        clean = torch.arange(sort.frames, device=video.device) < sort.clean
        streams = Streams(video, None if silent else sound, clean)
        return Part(streams, self.cache.colour[clips, : sort.frames].float(), ids)


def weights(colour: Tensor, sigma: Tensor) -> Tensor:
    """What the error of each video latent counts: colour (b, t, h, w), noise levels (b,).

    Shapes are an eighth of a video, and three quarters of the plain error lie in the background's faint noise.
    """
    return 1 + SHAPE_WEIGHT * colour * (1 - sigma**HIDDEN).view(-1, 1, 1, 1)


def sound_weights(recipe: Recipe) -> Tensor:
    """What the error of each sound latent counts, (d, 1).

    Clicks are rare and short, so little of the plain error is theirs. That it depends on the latent alone, not on what
    is in it, leaves the best answer what it was.
    """
    clicks = tone.click_atoms(recipe.sound.hop, recipe.sound.sample_rate).repeat(recipe.sound.channels)
    return torch.where(clicks, CLICK_WEIGHT, 1.0)[:, None]


def draw_sigmas(count: int, shift: float, draw: Draw) -> Tensor:
    """Noise levels (count,) with the density of the served schedule, spread evenly over it."""
    device = draw.torch.device
    u = (torch.arange(count, device=device) + torch.rand(count, generator=draw.torch, device=device)) / count
    return (shift * u / (1 + (shift - 1) * u)).clamp_max(LARGEST_SIGMA)


def build(recipe: Recipe) -> Transformer:
    """The towers at the start of training: unit activations, residual branches small, a velocity of 0."""
    transformer = Transformer(recipe.transformer)
    depth = math.sqrt(2 * recipe.transformer.num_hidden_layers)
    for name, parameter in transformer.named_parameters():
        if "norm" in name:
            nn.init.ones_(parameter)
        elif "proj_out" in name or parameter.ndim == 1:
            nn.init.zeros_(parameter)
        elif "embed_tokens" in name:
            nn.init.normal_(parameter)
        else:
            branch = depth if name.endswith(("to_out.weight", "down_proj.weight")) else 1
            nn.init.normal_(parameter, std=1 / (branch * math.sqrt(parameter.shape[1])))
    return transformer


def _sorts(shares: Shares, cache: Cache, batch: int) -> list[Sort]:
    """Clips from text alone, clips that go on from clean frames, and images."""
    lengths, later = cache.lengths.cpu().numpy(), cache.later.cpu().numpy()[:, None]
    of_image = np.arange(lengths.shape[1]) == lengths.shape[1] - 1
    frames, device = cache.video.shape[2], cache.video.device
    from_start, any_clip, image = (
        _frequent(np.where(fits, lengths, 0).ravel(), batch, device)
        for fits in (~later & ~of_image, ~of_image, ~later & of_image)
    )
    text = 1 - shares.picture - shares.clip - shares.image
    return [
        Sort(text, frames, 0, *from_start),
        Sort(shares.picture, frames, 1, *any_clip),
        Sort(shares.clip, frames, 2, *any_clip),
        Sort(shares.image, 1, 0, *image),
    ]


def _frequent(lengths: np.ndarray, count: int, device: torch.device) -> tuple[np.ndarray, dict[int, Tensor]]:
    """The lengths above 0 that are there ``count`` times or, if none is, most often; and where each of them is."""
    found, counts = np.unique(lengths[lengths > 0], return_counts=True)
    kept = found[counts >= min(count, counts.max())]
    places = {int(length): torch.from_numpy(np.flatnonzero(lengths == length)).to(device) for length in kept}
    return lengths[np.isin(lengths, kept)], places


def compile_layers() -> None:
    """Have PyTorch compile the layer, one function for all layers of both towers and for texts of any length."""
    block: Any = Block  # a method is no variable to the type checker
    block.forward = torch.compile(Block.forward, dynamic=True)


def _unconditional(recipe: Recipe, prompts: PromptEncoder) -> list[np.ndarray]:
    """Token ids of the default negative prompt and of an empty one."""
    params = recipe.generation.model_copy(update={"guidance_scale": 2.0})
    default = prompts.encode(params).negative
    assert default is not None, "with guidance there is a negative prompt"
    return [default, prompts.token_ids("")]


def _mixed(clean: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
    sigma = sigma.view(-1, *(1,) * (clean.ndim - 1))
    return (1 - sigma) * clean + sigma * noise


def _normal(like: Tensor, draw: Draw) -> Tensor:
    return torch.randn(like.shape, generator=draw.torch, device=like.device)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, steps=100_000, minutes=22, batch=256, rate=1.5e-3)
    parser.add_argument("--compile", action="store_true", help="compile the layers, which takes a minute at the start")
    args = parser.parse_args(arguments)
    if args.compile:
        compile_layers()
    device = torch.device(args.device)
    recipe, prompts = latents.recipe_of(args.out), PromptEncoder.from_checkpoint(args.out)
    cache = Cache.read(args.out / latents.FOLDER, device)
    task = TransformerTask(recipe, cache, prompts, args.batch, args.seed)
    train(task, settings_of(args, COMPONENT), device)


if __name__ == "__main__":
    main()
