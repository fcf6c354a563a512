"""Models of Cosmos3-Nano's size with random weights, made where they are used."""

import math
import zlib
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from cosmos3_models.autoencoders.sound_decoder import OobleckSoundDecoder
from cosmos3_models.autoencoders.video_decoder import WanVideoDecoder
from cosmos3_models.autoencoders.video_encoder import WanVideoEncoder
from cosmos3_models.checkpoint.configs import SoundDecoderConfig, TransformerConfig, VideoVAEConfig
from cosmos3_models.checkpoint.loading import allocate
from cosmos3_models.checkpoint.tensor_names import transformer_name
from cosmos3_models.transformer.joined_linear import separate_parameters
from cosmos3_models.transformer.model import Transformer

AnyModule = TypeVar("AnyModule", bound=nn.Module)

TRANSFORMER: dict[str, Any] = {
    "hidden_size": 4096,
    "intermediate_size": 12288,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 151936,
    "rms_norm_eps": 1e-6,
    "rope_theta": 5_000_000,
    "rope_scaling": {"mrope_interleaved": True, "mrope_section": [24, 20, 20], "rope_type": "default"},
    "latent_channel": 48,
    "latent_patch_size": 2,
    "patch_latent_dim": 192,
    "timestep_scale": 0.001,
    "base_fps": 24,
    "enable_fps_modulation": True,
    "unified_3d_mrope_temporal_modality_margin": 15000,
    "unified_3d_mrope_reset_spatial_ids": True,
    "sound_gen": True,
    "sound_dim": 64,
    "sound_latent_fps": 25.0,
    "hidden_act": "silu",
    "attention_bias": False,
    "qk_norm_for_text": True,
}
VIDEO_VAE = {
    "base_dim": 160,
    "decoder_base_dim": 256,
    "z_dim": 48,
    "dim_mult": [1, 2, 4, 4],
    "num_res_blocks": 2,
    "attn_scales": [],
    "temperal_downsample": [False, True, True],
    "is_residual": True,
    "in_channels": 12,
    "out_channels": 12,
    "patch_size": 2,
    "scale_factor_temporal": 4,
    "scale_factor_spatial": 16,
    "latents_mean": [0.0] * 48,
    "latents_std": [1.0] * 48,
}
SOUND = {
    "sampling_rate": 48000,
    "vocoder_input_dim": 64,
    "dec_dim": 320,
    "dec_c_mults": [1, 2, 4, 8, 16],
    "dec_strides": [2, 4, 5, 6, 8],
    "dec_out_channels": 2,
    "activation": "snakebeta",
    "dec_type": "oobleck",
    "snake_logscale": True,
    "causal": False,
}
SCHEDULER = {
    "use_karras_sigmas": True,
    "sigma_min": 0.147,
    "sigma_max": 200.0,
    "flow_shift": 1.0,
    "num_train_timesteps": 1000,
    "prediction_type": "flow_prediction",
    "use_flow_sigmas": True,
    "solver_order": 2,
    "solver_type": "bh2",
    "predict_x0": True,
    "final_sigmas_type": "zero",
}
QUIET = 0.3
PROMPT_TOKENS, NEGATIVE_TOKENS = 54, 2812  # a short prompt, and the default negative one


def transformer_config(layers: int) -> TransformerConfig:
    return TransformerConfig.model_validate(TRANSFORMER | {"num_hidden_layers": layers})


def transformer(device: str, dtype: torch.dtype, layers: int) -> Transformer:
    config = transformer_config(layers)
    return _materialized(lambda: Transformer(config), device, dtype, lambda name: transformer_name(name, layers))


def video_decoder(device: str, dtype: torch.dtype) -> WanVideoDecoder:
    return _materialized(lambda: WanVideoDecoder(VideoVAEConfig.model_validate(VIDEO_VAE)), device, dtype, str)


def video_encoder(device: str, dtype: torch.dtype) -> WanVideoEncoder:
    return _materialized(lambda: WanVideoEncoder(VideoVAEConfig.model_validate(VIDEO_VAE)), device, dtype, str)


def sound_decoder(device: str, dtype: torch.dtype) -> OobleckSoundDecoder:
    return _materialized(lambda: OobleckSoundDecoder(SoundDecoderConfig.model_validate(SOUND)), device, dtype, str)


def fill(name: str, parameter: Tensor) -> None:
    """Draw a weight that its name fixes, rounded to bf16, so that every dtype and every peer holds the same values."""
    generator = torch.Generator(parameter.device).manual_seed(zlib.crc32(name.encode()))
    draw = torch.randn(parameter.shape, generator=generator, device=parameter.device, dtype=torch.float32)
    parameter.copy_(_scaled(name, draw).bfloat16())


def _scaled(name: str, draw: Tensor) -> Tensor:
    if "norm" in name:
        return 1 + 0.1 * draw
    if draw.ndim == 1 or draw.shape[0] == 1:
        return 0.05 * draw
    gain = QUIET if name.startswith("decoder.block") else 1  # the sound's residual units would add up beyond full scale
    return gain * draw / math.sqrt(draw[0].numel())


def _materialized(
    build: Callable[[], AnyModule], device: str, dtype: torch.dtype, drawn_as: Callable[[str], str]
) -> AnyModule:
    with torch.device("meta"):
        module = build().eval().requires_grad_(False)
    allocate(module, torch.device(device), dtype)
    for name, parameter in separate_parameters(module).items():
        fill(drawn_as(name), parameter)
    return module
