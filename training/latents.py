"""Encode clips once, so that the transformer's steps read latents and token ids from the GPU's memory.

python -m training.latents --out .gpu/demo --minutes 1.3
"""

import argparse
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from cosmos3_models.params import GenerationParams
from cosmos3_models.text.prompt import PromptEncoder
from training import sound_autoencoder, video_vae
from training.captions import with_strange_word, write_caption
from training.labels import Labels
from training.loop import load_average
from training.recipe import Recipe
from training.scene import Scene
from training.tokenizer import described
from training.world import Draw, World

logger = logging.getLogger("training")

FOLDER = "latents"
FILE = "latents.safetensors"
RECIPE = "recipe.json"
CHUNK = 64  # clips encoded at a time
CAPTIONS_PER_CLIP = 3  # and one of its first frame
LATER_SHARE = 0.3  # of the clips begin somewhere in their motion: what they are for is to go on from there
MOVING_SHARE = 0.25  # of the captions of first frames state a motion all the same: whoever asks for an image may
STRANGE_SHARE = 0.06  # of the captions have a word that nobody knows: a shape then has any colour, or any kind
PLAIN_SHARE = 0.1  # of the captions come without the sentences about length and size
LENGTH_STEP = 3  # captions have a multiple of it in tokens, for every length that training meets costs it a recording
TRIES = 30  # at a caption of such a length
PADDING = -1


@dataclass(frozen=True)
class Cache:
    """Encoded clips and their captions.

    Attributes:
        video: bf16 (n, c, t, h, w), normalised as serving expects it.
        sound: bf16 (n, d, t).
        colour: bf16 (n, t, h, w), 0 to 1, how colourful the most colourful pixel is that a video latent stands for.
        later: bool (n,), clips that begin as none begins that is made from text alone.
        ids: int16 (n, captions, longest), padded; the last caption is of the first frame.
        lengths: int16 (n, captions).
    """

    video: Tensor
    sound: Tensor
    colour: Tensor
    later: Tensor
    ids: Tensor
    lengths: Tensor

    @classmethod
    def read(cls, folder: Path, device: torch.device) -> "Cache":
        """Read what ``write`` left."""
        return cls(**{name: tensor.to(device) for name, tensor in load_file(folder / FILE).items()})

    def write(self, folder: Path) -> None:
        """Write one file."""
        save_file({name: tensor.contiguous().cpu() for name, tensor in vars(self).items()}, folder / FILE)


class Encoded(NamedTuple):
    """Clips as ``Cache`` has them, but fp32 and not normalised."""

    video: Tensor
    sound: Tensor
    colour: Tensor


class Encoders:
    """Both trained encoders."""

    def __init__(self, recipe: Recipe, out: Path, device: torch.device) -> None:
        self.world = World.of(recipe)
        self.device = device
        self.dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        video = load_average(video_vae.build(recipe), out / video_vae.COMPONENT, device)
        sound = load_average(sound_autoencoder.build(recipe), out / sound_autoencoder.COMPONENT, device)
        self.video = video.encoder.to(self.dtype)
        self.sound = sound.encoder

    @torch.inference_mode()
    def __call__(self, scene: Scene) -> Encoded:
        """Latents of these clips, video as the decoder takes it."""
        frames = self.world.frames(scene)
        mean, _ = video_vae.encode(self.video, frames)
        sound = self.sound(self.world.waveform(scene))
        return Encoded(mean.float(), sound.float(), most_colourful(frames, mean))


def most_colourful(frames: Tensor, latents: Tensor) -> Tensor:
    """The largest difference of a pixel's channels that each latent stands for.

    Args:
        frames: (n, 3, 4 t - 3, 16 h, 16 w) in [-1, 1], here with the sizes of Cosmos3's video autoencoder.
        latents: (n, c, t, h, w); the first stands for one frame, the others for as many each as there are left.

    Returns:
        (n, t, h, w) in [0, 1]
    """
    chroma = (frames.amax(1) - frames.amin(1)) / 2
    _, _, t, h, w = latents.shape
    stride = -(-frames.shape[2] // t)
    whole = torch.cat([chroma[:, :1].expand(-1, stride - 1, -1, -1), chroma], dim=1)
    return F.max_pool3d(whole, (stride, frames.shape[3] // h, frames.shape[4] // w))


def encode(
    recipe: Recipe, out: Path, clips: int, minutes: float | None, seed: int, device: torch.device
) -> tuple[Cache, Recipe]:
    """Encode up to ``clips`` training clips, as far as the time goes; the recipe then has their statistics."""
    encoders, prompts = Encoders(recipe, out, device), PromptEncoder.from_checkpoint(out)
    video, sound, colour, later, texts = [], [], [], [], []
    for draw in _draws(clips, minutes, seed, device):
        scene, moved = encoders.world.later(encoders.world.scenes(draw, CHUNK), draw, LATER_SHARE)
        latents = encoders(scene)
        video.append(latents.video.half())
        sound.append(latents.sound.bfloat16())
        colour.append(latents.colour.bfloat16())
        later.append(moved)
        texts += [_captions(recipe, prompts, scene.labels, index, draw.numpy) for index in range(CHUNK)]
    stacked = torch.cat(video)
    mean, std = (_by_channel(statistic) for statistic in statistics(stacked))
    for chunk in stacked.split(1024):
        chunk.copy_((chunk.float() - mean) / std)
    ids, lengths = _padded(texts)
    cache = Cache(stacked.bfloat16(), torch.cat(sound), torch.cat(colour), torch.cat(later), ids, lengths)
    return cache, recipe.with_statistics(*(value.flatten().tolist() for value in (mean, std)))


def recipe_of(out: Path) -> Recipe:
    """The recipe that the latents were made by, with their statistics."""
    return Recipe.read(out / FOLDER / RECIPE)


def write_recipe(recipe: Recipe, out: Path) -> None:
    """Write what ``recipe_of`` reads."""
    (out / FOLDER).mkdir(exist_ok=True)
    (out / FOLDER / RECIPE).write_text(recipe.dump())


def statistics(latents: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (c,) of each channel of (n, c, t, h, w), in fp64 over pieces of any number."""
    total = torch.zeros(2, latents.shape[1], dtype=torch.float64, device=latents.device)
    for chunk in latents.split(1024):
        values = chunk.double().transpose(0, 1).flatten(1)
        total += torch.stack([values.sum(1), values.square().sum(1)])
    mean, square = total / (latents.numel() // latents.shape[1])
    return mean.float(), (square - mean.square()).sqrt().float()


def _draws(clips: int, minutes: float | None, seed: int, device: torch.device) -> Iterator[Draw]:
    start = time.monotonic()
    for step in range(-(-clips // CHUNK)):
        if minutes is not None and time.monotonic() - start > 60 * minutes:
            return
        if step % 100 == 0:
            logger.info("%d clips in %.0f s", step * CHUNK, time.monotonic() - start)
        yield Draw(seed + 1, step, device)  # not the numbers that the autoencoders were trained on


def _captions(
    recipe: Recipe, prompts: PromptEncoder, labels: Labels, scene: int, random: np.random.Generator
) -> list[list[int]]:
    """Token ids of several captions of one scene and one of its first frame, as serving makes them."""
    clip, image = recipe.generation, recipe.generation.model_copy(update={"num_frames": 1})
    of = [clip] * CAPTIONS_PER_CLIP + [image]
    return [_caption(prompts, params, partial(write_caption, labels, scene, random), random) for params in of]


def _caption(
    prompts: PromptEncoder, params: GenerationParams, write: Callable[..., str], random: np.random.Generator
) -> list[int]:
    """A caption whose length is a multiple of ``LENGTH_STEP``, where there is one."""
    plain, strange, moving = random.random(3) < (PLAIN_SHARE, STRANGE_SHARE, MOVING_SHARE)
    for _ in range(TRIES):
        text = write(still=params.num_frames == 1 and not moving)
        text = with_strange_word(text, random) if strange else text
        ids = prompts.token_ids(text if plain else described(text, params)).tolist()
        if len(ids) % LENGTH_STEP == 0:
            break
    return ids


def _padded(texts: list[list[list[int]]]) -> tuple[Tensor, Tensor]:
    lengths = torch.tensor([[len(ids) for ids in captions] for captions in texts], dtype=torch.int16)
    padded = torch.full((*lengths.shape, int(lengths.max())), PADDING, dtype=torch.int16)
    for clip, captions in enumerate(texts):
        for caption, ids in enumerate(captions):
            padded[clip, caption, : len(ids)] = torch.tensor(ids, dtype=torch.int16)
    return padded, lengths


def _by_channel(values: Tensor) -> Tensor:
    return values[:, None, None, None]


def main(arguments: list[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--out", type=Path, required=True, help="folder of the whole demo, with the trained autoencoders")
    add("--recipe", type=Path, default=None, help="configs of the models")
    add("--clips", type=int, default=60_000, help="at most (%(default)s)")
    add("--minutes", type=float, default=1.3, help="then it makes do with what it has (%(default)s)")
    add("--seed", type=int, default=0, help="of the clips (%(default)s)")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="torch device (%(default)s)")
    args = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    recipe = Recipe.read(args.recipe) if args.recipe else Recipe.read()
    cache, recipe = encode(recipe, args.out, args.clips, args.minutes, args.seed, torch.device(args.device))
    write_recipe(recipe, args.out)
    cache.write(args.out / FOLDER)
    logger.info("%d clips", len(cache.video))


if __name__ == "__main__":
    main()
