"""diffusers' transformer with the same random weights and inputs, as its pipeline calls it."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks import nano
from cosmos3_models.checkpoint.configs import TransformerConfig
from cosmos3_models.shapes import LatentGrid
from cosmos3_models.transformer.positions import text_positions, video_positions


def transformer(device: str, layers: int, compiled: bool) -> Any:
    """In bf16 with the time embedder in fp32; ``compiled`` layer by layer, as its documentation advises."""
    from diffusers.models.transformers.transformer_cosmos3 import Cosmos3OmniTransformer

    given = nano.TRANSFORMER | {"num_hidden_layers": layers}
    fields = {name: value for name, value in given.items() if name != "hidden_act"}
    with torch.device("meta"):
        module = Cosmos3OmniTransformer(**fields)
    module.to_empty(device=device).bfloat16().requires_grad_(False)
    module.time_embedder.float()
    for name, parameter in module.named_parameters():
        nano.fill(name, parameter)
    slots = torch.arange(0, given["head_dim"], 2, dtype=torch.float32, device=device)
    module.rotary_emb.inv_freq = 1.0 / given["rope_theta"] ** (slots / given["head_dim"])
    if compiled:
        module.compile_repeated_blocks(fullgraph=True, dynamic=True)
    return module


def velocity_call(module: Any, config: TransformerConfig, ids: Tensor, grid: LatentGrid) -> Callable[..., Tensor]:
    """A function of latents (1, c, t, h, w) and a timestep that runs the whole transformer."""
    device, length, patches = ids.device, ids.shape[1], grid.patches(config.latent_patch_size)
    media = torch.arange(length, length + patches.cells, device=device)
    positions = [text_positions(length), video_positions(patches, length + config.media_position_offset, 24.0, config)]
    fixed = {
        "input_ids": ids[0],
        "text_indexes": torch.arange(length, device=device),
        "position_ids": torch.cat(positions, dim=1).to(device),
        "und_len": length,
        "sequence_length": length + patches.cells,
        "vision_token_shapes": [(patches.frames, patches.height, patches.width)],
        "vision_sequence_indexes": media,
        "vision_mse_loss_indexes": media,
        "vision_noisy_frame_indexes": [torch.arange(patches.frames, device=device)],
    }

    @torch.inference_mode()
    def velocity(latents: Tensor, timestep: int) -> Tensor:
        timesteps = torch.full((patches.cells,), timestep, device=device)
        video: Tensor = module(**fixed, vision_tokens=[latents.bfloat16()], vision_timesteps=timesteps).sample[0]
        return video

    return velocity
