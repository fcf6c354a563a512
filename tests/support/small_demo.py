"""A recipe so small that every trainer takes a step in a fraction of a second."""

from pathlib import Path
from typing import Any

import tiny

from training import export, sound_autoencoder, tokenizer, transformer, video_vae
from training.recipe import Recipe

CHANGES: dict[str, dict[str, Any]] = {
    "generation": {"num_frames": 9, "height": 64, "width": 64, "num_inference_steps": 2},
    "transformer": {
        "hidden_size": 48,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "vocab_size": 400,
        "rope_scaling": {"mrope_interleaved": True, "mrope_section": [4, 2, 2], "rope_type": "default"},
        "latent_channel": 8,
        "patch_latent_dim": 32,
        "sound_dim": 24,
    },
    "vae": {"base_dim": 4, "decoder_base_dim": 4, "z_dim": 8},
    "sound_tokenizer": {"dec_dim": 2},
}


def recipe() -> Recipe:
    """The demo's recipe with everything small."""
    data = dict(Recipe.read().data)
    data["vae"] = {name: value for name, value in data["vae"].items() if not name.startswith("latents_")}
    return Recipe.of(data | {component: data[component] | change for component, change in CHANGES.items()})


def untrained(out: Path) -> Path:
    """A checkpoint of random weights below ``out``."""
    small = recipe()
    tokenizer.write(small, out, tokenizer.build(small, captions=100))
    parts = export.Parts(
        tiny.randomize(transformer.build(small), 0),
        tiny.randomize(video_vae.build(small), 1),
        tiny.randomize(sound_autoencoder.build(small), 2),
    )
    return export.export(small, parts, out, out / "checkpoint")
