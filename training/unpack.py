"""Put a checkpoint's parts where the trainers look, to go on from it: the inverse of ``training.export``.

python -m training.unpack --checkpoint demo --out .gpu/demo

Then come training.latents and training.transformer with --start .gpu/demo/start/transformer.safetensors.
"""

import argparse
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from cosmos3_models.checkpoint.folder import Checkpoint
from cosmos3_models.checkpoint.loading import load_sound_decoder, load_transformer
from training import latents, sound_autoencoder, tokenizer, transformer, video_vae
from training.export import WEIGHTS as EXPORTED
from training.loop import WEIGHTS
from training.recipe import Recipe

START = Path("start") / "transformer.safetensors"


def unpack(checkpoint: Checkpoint, recipe: Recipe, out: Path) -> None:
    """Write the autoencoders as finished runs, the tokenizer, the recipe with the statistics of the checkpoint's
    latents, and the transformer as something to start from.
    """
    cpu, exact = torch.device("cpu"), torch.float32
    video, sound = video_vae.build(recipe), sound_autoencoder.build(recipe)
    stored = load_file(checkpoint.folder / "vae" / EXPORTED)
    for module in (video.encoder, video.decoder):
        module.load_state_dict({name: stored[name] for name in module.state_dict()})
    sound.decoder = load_sound_decoder(checkpoint, cpu, exact)
    towers = transformer.Trainable(load_transformer(checkpoint, cpu, exact), recipe.fps)
    _save(video, out / video_vae.COMPONENT / WEIGHTS)
    _save(sound, out / sound_autoencoder.COMPONENT / WEIGHTS)
    _save(towers, out / START)
    vae = checkpoint.video_vae
    latents.write_recipe(recipe.with_statistics(list(vae.latents_mean), list(vae.latents_std)), out)
    for folder in (tokenizer.FOLDER, tokenizer.ASSETS):
        shutil.copytree(checkpoint.folder / folder, out / folder)


def _save(module: nn.Module, path: Path) -> None:
    path.parent.mkdir(parents=True)
    save_file({name: tensor.float().contiguous() for name, tensor in module.state_dict().items()}, path)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", default="demo", help="folder that training.export wrote, or demo (%(default)s)")
    parser.add_argument("--out", type=Path, required=True, help="new folder of the whole demo")
    parser.add_argument("--recipe", type=Path, default=None, help="configs of the models")
    args = parser.parse_args(arguments)
    recipe = Recipe.read(args.recipe) if args.recipe else Recipe.read()
    unpack(Checkpoint.open(args.checkpoint), recipe, args.out)


if __name__ == "__main__":
    main()
