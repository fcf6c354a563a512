"""Seeded random weights for the demo's configs."""

import json
import math
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import nn

from cosmos3_models.config import SoundDecoderConfig, TransformerConfig, VideoVAEConfig
from cosmos3_models.names import transformer_name
from cosmos3_models.sound_decoder import SoundDecoder
from cosmos3_models.transformer import Transformer
from cosmos3_models.video_vae import VideoDecoder

QUIET = 0.0002  # gain of the sound: noise at full scale hurts
CONFIGS = Path(__file__).parent / "configs.json"


def write(out: Path) -> None:
    """Write the checkpoint into an existing empty folder."""
    configs = json.loads(CONFIGS.read_text())
    for component, file in (
        ("transformer", "config.json"),
        ("vae", "config.json"),
        ("sound_tokenizer", "config.json"),
        ("scheduler", "scheduler_config.json"),
        ("text_tokenizer", "tokenizer_config.json"),
    ):
        (out / component).mkdir()
        _write_json(out / component / file, configs[component])
    _write_json(out / "generation_config.json", configs["generation"])
    _write_tokenizer(out / "text_tokenizer")
    with torch.device("meta"):
        transformer = Transformer(TransformerConfig.model_validate(configs["transformer"]))
        video = VideoDecoder(VideoVAEConfig.model_validate(configs["vae"]))
        sound = SoundDecoder(SoundDecoderConfig.model_validate(configs["sound_tokenizer"]))
    layers = transformer.config.num_hidden_layers
    tensors = {transformer_name(name, layers): tensor for name, tensor in _random_weights(transformer, 1).items()}
    _save(tensors, out / "transformer")
    _save(_random_weights(video, 2), out / "vae")
    tensors = _random_weights(sound, 3)
    tensors["decoder.conv2.weight"] *= QUIET
    _save(tensors, out / "sound_tokenizer")


def _random_weights(module: nn.Module, seed: int) -> dict[str, torch.Tensor]:
    """Weights that keep activations near unit size: fan-in scaled matrices, gains near 1, small vectors."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, parameter in module.named_parameters():
        draw = torch.randn(parameter.shape, generator=generator)
        if "norm" in name:
            draw = 1 + 0.1 * draw
        elif parameter.ndim > 1 and parameter.shape[0] > 1:
            draw = draw / math.sqrt(parameter[0].numel())
        else:
            draw = 0.1 * draw
        weights[name] = draw.to(torch.bfloat16)
    return weights


def _save(tensors: dict[str, torch.Tensor], component: Path) -> None:
    save_file(tensors, component / "diffusion_pytorch_model.safetensors", metadata={"format": "pt"})


def _write_tokenizer(component: Path) -> None:
    """A byte-level vocabulary with the special tokens of Qwen."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>"])
    tokenizer.save(str(component / "tokenizer.json"))


def _write_json(path: Path, data: Any) -> None:
    path.write_text(json.dumps(data, indent=2) + "\n")
