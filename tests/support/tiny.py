"""Small random checkpoints in the public layout, written by diffusers, and diffusers' own results on them."""

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler
from diffusers.models.autoencoders.autoencoder_cosmos3_audio import Cosmos3AVAEAudioTokenizer
from diffusers.models.transformers.transformer_cosmos3 import Cosmos3OmniTransformer
from diffusers.pipelines.cosmos.pipeline_cosmos3_omni import Cosmos3OmniPipeline
from numpy.typing import NDArray
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import PreTrainedTokenizerFast

from cosmos3_models import Cosmos3Pipeline, GenerationParams, GenerationResult
from cosmos3_models.references import clean_frames
from cosmos3_models.sampling.denoise import draw_noise
from cosmos3_models.transformer.generation_tower import Streams

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LATENT_CHANNELS = 8
SOUND_CHANNELS = 4

Pixels = NDArray[np.uint8]
"""A picture (h, w, 3), or a clip (n, h, w, 3)."""


@contextmanager
def quiet_reference() -> Iterator[None]:
    """What the reference warns about within itself is no fault of ours."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@quiet_reference()
def write_checkpoint(folder: Path, seed: int = 0, max_shard_size: str = "200KB") -> Path:
    """A complete checkpoint with seeded random weights, as ``save_pretrained`` leaves it.

    PhyAI's recorded latents in data/ are of seed 0: a change of the transformer's recipe loses them.
    """
    pipeline = Cosmos3OmniPipeline(
        transformer=randomize(_transformer(), seed + 1),
        text_tokenizer=write_tokenizer_object(),
        vae=randomize(_video_vae(seed + 2), seed + 3),
        scheduler=UniPCMultistepScheduler(
            prediction_type="flow_prediction",
            use_flow_sigmas=True,
            use_karras_sigmas=True,
            sigma_max=200.0,
            sigma_min=0.147,
        ),
        sound_tokenizer=randomize(_sound_autoencoder(), seed + 4),
        enable_safety_checker=False,
        default_use_system_prompt=False,
        use_native_flow_schedule=False,
    )
    pipeline.save_pretrained(str(folder), safe_serialization=True, max_shard_size=max_shard_size)
    return folder


def write_tokenizer_object() -> PreTrainedTokenizerFast:
    """A byte-level vocabulary without merges, with the special tokens that the template needs."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>"])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=["<|im_start|>", "<|vision_start|>"],
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def randomize(module: nn.Module, seed: int) -> Any:
    """Seeded weights under which nothing explodes, vanishes or clips, so that every part shows in the output."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(module.named_parameters()):
            draw = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(_scaled(name, draw))
    return module


def _scaled(name: str, draw: torch.Tensor) -> torch.Tensor:
    leaf = name.rsplit(".", 1)[-1]
    if leaf == "gamma" or (leaf == "weight" and draw.ndim == 1):
        return 1 + 0.1 * draw
    if leaf == "weight_g":
        return (0.5 + 0.1 * draw.abs()) * (0.5 if name == "decoder.conv2.weight_g" else 1)
    if leaf in ("alpha", "beta"):
        return 0.2 * draw
    if draw.ndim == 1:
        return 0.05 * draw
    return draw / math.sqrt(draw[0].numel())


@dataclass(frozen=True)
class Reference:
    """What diffusers makes of a request: fp32 latents (1, c, t, h, w), pixels (1, 3, T, H, W), waveform (2, n).

    ``start`` is the noise with the clean latent frames in their places, (1, c, t, h, w).
    """

    start: torch.Tensor
    video_latents: np.ndarray
    pixels: np.ndarray
    waveform: np.ndarray | None


@lru_cache(maxsize=1)
def _reference_pipeline(folder: Path) -> Cosmos3OmniPipeline:
    pipeline = Cosmos3OmniPipeline.from_pretrained(str(folder), enable_safety_checker=False)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@quiet_reference()
def run_diffusers(
    folder: Path, params: GenerationParams, noise: Streams, image: Pixels | None = None, video: Pixels | None = None
) -> Reference:
    """Run diffusers' pipeline on the checkpoint's files, with the noise given and a picture or a clip.

    Of a clip the frames have the size of the video: diffusers would stretch others, and crops only pictures.
    """
    pipeline = _reference_pipeline(folder)
    flow = params.sigma_schedule == "flow"
    pipeline.register_to_config(use_native_flow_schedule=flow)
    pipeline.scheduler = UniPCMultistepScheduler.from_pretrained(
        folder / "scheduler", **({"use_karras_sigmas": False, "flow_shift": params.flow_shift} if flow else {})
    )
    request: dict[str, Any] = {
        "prompt": params.prompt,
        "negative_prompt": params.negative_prompt,
        "num_frames": params.num_frames,
        "height": params.height,
        "width": params.width,
        "fps": params.fps,
        "num_inference_steps": params.num_inference_steps,
        "guidance_scale": params.guidance_scale,
        "enable_safety_check": False,
        "enable_sound": noise.sound is not None,
        "sound_latents": None if noise.sound is None else noise.sound[0],
        "add_resolution_template": params.append_metadata,
        "add_duration_template": params.append_metadata,
        **_given(params, image, video),
    }
    start = _blended(pipeline, request, noise.video)
    last_step: dict[str, torch.Tensor] = {}

    def keep(_: Any, __: int, ___: Any, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        last_step.update(tensors)
        return {}

    decoded = pipeline(**request, latents=start, output_type="pt", callback_on_step_end=keep)
    return Reference(
        start,
        last_step["latents"].numpy().reshape(start.shape),
        decoded.video.numpy(),
        None if decoded.sound is None else decoded.sound.numpy(),
    )


def _given(params: GenerationParams, image: Pixels | None, video: Pixels | None) -> dict[str, Any]:
    """Picture or clip as diffusers takes them."""
    if image is not None:
        return {"image": Image.fromarray(image)}
    if video is None:
        return {}
    return {
        "video": [Image.fromarray(frame) for frame in video],
        "condition_frame_indexes_vision": clean_frames(params, "video"),
        "condition_video_keep": params.condition_video_keep,
    }


@torch.no_grad()
def _blended(pipeline: Cosmos3OmniPipeline, request: dict[str, Any], noise: torch.Tensor) -> torch.Tensor:
    """Noise with diffusers' own clean frames in it, which it does not put into latents that it is given."""
    names = signature(pipeline.prepare_latents).parameters
    given = {name: value for name, value in request.items() if name in names and name != "enable_sound"}
    generator = torch.Generator().manual_seed(0)  # of noise that nobody uses
    prepared = pipeline.prepare_latents(**given, generator=generator, device="cpu", dtype=torch.float32)
    latents, mask = prepared[0], prepared[5]
    return torch.where(mask > 0, latents, noise)


def relative_error(got: Any, expected: Any) -> float:
    """Euclidean distance over the length of what is expected, in fp64."""
    got, expected = (np.asarray(x, dtype=np.float64).ravel() for x in (got, expected))
    return float(np.linalg.norm(got - expected) / np.linalg.norm(expected))


def _transformer() -> Cosmos3OmniTransformer:
    return Cosmos3OmniTransformer(
        hidden_size=64,
        head_dim=16,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_hidden_layers=3,
        intermediate_size=96,
        vocab_size=320,
        rms_norm_eps=1e-6,
        rope_theta=5e6,
        rope_scaling={"mrope_interleaved": True, "mrope_section": [4, 2, 2], "rope_type": "default"},
        latent_channel=LATENT_CHANNELS,
        latent_patch_size=2,
        patch_latent_dim=4 * LATENT_CHANNELS,
        base_fps=24,
        enable_fps_modulation=True,
        unified_3d_mrope_reset_spatial_ids=True,
        unified_3d_mrope_temporal_modality_margin=15000,
        timestep_scale=0.001,
        hidden_act="silu",
        attention_bias=False,
        qk_norm_for_text=True,
        sound_gen=True,
        sound_dim=SOUND_CHANNELS,
        sound_latent_fps=25.0,
        action_gen=True,
        action_dim=6,
        num_embodiment_domains=32,
    )


def _video_vae(seed: int) -> AutoencoderKLWan:
    random = np.random.RandomState(seed)
    return AutoencoderKLWan(
        base_dim=8,
        decoder_base_dim=12,
        z_dim=LATENT_CHANNELS,
        dim_mult=[1, 2, 4, 4],
        num_res_blocks=2,
        attn_scales=[],
        temperal_downsample=[False, True, True],
        is_residual=True,
        in_channels=12,
        out_channels=12,
        patch_size=2,
        scale_factor_temporal=4,
        scale_factor_spatial=16,
        latents_mean=random.uniform(-0.5, 0.5, LATENT_CHANNELS).round(4).tolist(),
        latents_std=random.uniform(0.5, 1.5, LATENT_CHANNELS).round(4).tolist(),
    )


def _sound_autoencoder() -> Cosmos3AVAEAudioTokenizer:
    return Cosmos3AVAEAudioTokenizer(
        model_type="autoencoder_v2",
        sampling_rate=48000,
        vocoder_input_dim=SOUND_CHANNELS,
        dec_dim=3,
        dec_c_mults=[1, 2, 4, 8, 16],
        dec_strides=[2, 4, 5, 6, 8],
        dec_out_channels=2,
        stereo=True,
        hop_size=1920,
        enc_dim=4,
        enc_num_blocks=1,
        enc_latent_dim=8,
    )


@dataclass(frozen=True)
class Comparison:
    """Our result, its pixels (1, 3, t, h, w) before rounding, and how far both are from those of diffusers."""

    result: GenerationResult
    pixels: torch.Tensor
    errors: dict[str, float]


def compare_with_diffusers(pipeline: Cosmos3Pipeline, params: GenerationParams, **given: Pixels) -> Comparison:
    """Relative errors of latents, pixels and, where there is sound, waveform, from the same files and noise."""
    noise = draw_noise(pipeline.denoiser.latent_shapes(params), params.seed)
    expected = run_diffusers(pipeline.checkpoint.folder, params, noise, **given)
    result = pipeline(params, **given)
    pixels = torch.cat(list(pipeline.video_decoder(result.video_latents)), dim=2)
    errors = {
        "latents": relative_error(result.video_latents, expected.video_latents),
        "pixels": relative_error(pixels[0].transpose(0, 1), expected.pixels),
    }
    if params.generate_sound:
        errors["waveform"] = relative_error(result.waveform, expected.waveform)
    return Comparison(result, pixels, errors)
