"""Write the trained parts as a checkpoint in the public layout, which diffusers reads as well.

python -m training.export --out .gpu/demo --to .gpu/cosmos3-demo
"""

import argparse
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from cosmos3_models.checkpoint.folder import PROMPT_GUIDE
from cosmos3_models.checkpoint.tensor_names import transformer_name
from cosmos3_models.transformer.joined_linear import separate_parameters
from cosmos3_models.transformer.model import Transformer
from training import latents, sound_autoencoder, tokenizer, transformer, video_vae
from training.loop import load_average
from training.prompt_guide import prompt_guide
from training.recipe import Recipe
from training.sound_autoencoder import SoundAutoencoder
from training.video_vae import VideoAutoencoder

STORED = torch.float16  # ten bits of mantissa, and no weight of ours is too large for it
LARGEST_BYTES = 30_000_000
WEIGHTS = "diffusion_pytorch_model.safetensors"
CARD = Path(__file__).parent / "model_card.md"

# What diffusers builds from the folder.
CLASSES = {
    "scheduler": ("diffusers", "UniPCMultistepScheduler"),
    "sound_tokenizer": ("diffusers", "Cosmos3AVAEAudioTokenizer"),
    "text_tokenizer": ("transformers", "PreTrainedTokenizerFast"),
    "transformer": ("diffusers", "Cosmos3OmniTransformer"),
    "vae": ("diffusers", "AutoencoderKLWan"),
}
INDEX = {
    "_class_name": "Cosmos3OmniPipeline",
    "default_use_system_prompt": False,
    "enable_safety_checker": False,
    "safety_checker": (None, None),
    "use_native_flow_schedule": True,
}


@dataclass(frozen=True)
class Parts:
    """Everything that is trained."""

    transformer: Transformer
    video: VideoAutoencoder
    sound: SoundAutoencoder

    @classmethod
    def load(cls, recipe: Recipe, out: Path) -> "Parts":
        """The averaged weights of the finished runs."""
        cpu = torch.device("cpu")
        trained = transformer.Trainable(transformer.build(recipe), recipe.fps)
        load_average(trained, out / transformer.COMPONENT, cpu)
        video, sound = video_vae.build(recipe), sound_autoencoder.build(recipe)
        load_average(video, out / video_vae.COMPONENT, cpu)
        load_average(sound, out / sound_autoencoder.COMPONENT, cpu)
        return cls(trained.model, video, sound)


def export(recipe: Recipe, parts: Parts, text: Path, to: Path, dtype: torch.dtype = STORED) -> Path:
    """Write the checkpoint into a new folder.

    Args:
        text: folder that ``training.tokenizer`` wrote.

    Raises:
        ValueError: the folder is larger than ``LARGEST_BYTES``.
    """
    to.mkdir(parents=True)
    for component, tensors in (
        ("transformer", transformer_tensors(parts.transformer)),
        ("vae", _named(parts.video.encoder, parts.video.decoder)),
        ("sound_tokenizer", sound_tensors(parts.sound)),
    ):
        (to / component).mkdir()
        _write_json(to / component / "config.json", recipe.data[component])
        stored = {name: tensor.detach().to(dtype).contiguous() for name, tensor in tensors.items()}
        save_file(stored, to / component / WEIGHTS, metadata={"format": "pt"})
    (to / "scheduler").mkdir()
    _write_json(to / "scheduler" / "scheduler_config.json", recipe.data["scheduler"])
    _write_json(to / "generation_config.json", recipe.data["generation"])
    _write_json(to / "model_index.json", INDEX | CLASSES)
    for folder in (tokenizer.FOLDER, tokenizer.ASSETS):
        shutil.copytree(text / folder, to / folder)
    _write_json(to / PROMPT_GUIDE, prompt_guide())
    shutil.copy(CARD, to / "README.md")
    _check_size(to)
    return to


def transformer_tensors(module: Transformer) -> dict[str, Tensor]:
    """The towers in the public names, with what only a text model would use filled in."""
    layers = module.config.num_hidden_layers
    tensors = {transformer_name(name, layers): tensor for name, tensor in separate_parameters(module).items()}
    first, last = "layers.0.", f"layers.{layers - 1}."
    for name in [name for name in tensors if name.startswith(first)]:
        tensors.setdefault(name.replace(first, last), torch.zeros_like(tensors[name]))
    tensors["norm.weight"] = torch.ones_like(tensors["norm_moe_gen.weight"])
    tensors["lm_head.weight"] = torch.zeros_like(tensors["embed_tokens.weight"])
    return tensors


def sound_tensors(module: SoundAutoencoder) -> dict[str, Tensor]:
    """The sound decoder, its convolutions split into length and direction as the public format has them."""
    return dict(_weight_normed(module.decoder))


def _weight_normed(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in module.named_parameters():
        if name.endswith(".weight"):
            yield f"{name}_g", torch.linalg.vector_norm(tensor, dim=(1, 2), keepdim=True)
            yield f"{name}_v", tensor
        else:
            yield name, tensor


def _named(*modules: nn.Module) -> dict[str, Tensor]:
    return {name: tensor for module in modules for name, tensor in module.named_parameters()}


def _check_size(folder: Path) -> None:
    size = sum(path.stat().st_size for path in folder.rglob("*"))
    if size > LARGEST_BYTES:
        raise ValueError(f"{folder}: got {size} bytes, expected at most {LARGEST_BYTES}, for it ships in the package")


def _write_json(path: Path, data: Any) -> None:
    path.write_text(json.dumps(data, indent=2) + "\n")


def main(arguments: list[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the whole demo, with everything trained")
    parser.add_argument("--to", type=Path, required=True, help="folder of the checkpoint; it must not exist")
    args = parser.parse_args(arguments)
    recipe = latents.recipe_of(args.out)
    export(recipe, Parts.load(recipe, args.out), args.out, args.to)


if __name__ == "__main__":
    main()
