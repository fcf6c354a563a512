"""The checkpoint's config files as frozen values: only what the code reads. What it cannot serve is refused."""

import itertools
import json
import math
import operator
import os
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from cosmos3_models import shapes
from cosmos3_models.errors import CheckpointError, InvalidInput

Count = Annotated[int, Field(gt=0)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]

LFS_POINTER = b"version https://git-lfs.github.com/spec/"
"""How a file begins that Git left in place of a large one."""


class _Config(BaseModel):
    """Frozen; the files hold more than we read, so other fields are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore")


AnyConfig = TypeVar("AnyConfig", bound=BaseModel)


class TransformerConfig(_Config):
    """``transformer/config.json``."""

    hidden_size: Count
    intermediate_size: Count
    num_hidden_layers: Annotated[int, Field(ge=2)]
    num_attention_heads: Count
    num_key_value_heads: Count
    head_dim: Annotated[int, Field(gt=0, multiple_of=2)]
    vocab_size: Count
    rms_norm_eps: Positive
    rope_theta: Positive
    rope_sections: tuple[Count, Count, Count]  # rotary slots of time, height and width
    latent_channel: Count
    latent_patch_size: Count
    patch_latent_dim: Count
    timestep_scale: Positive
    base_fps: Positive
    enable_fps_modulation: bool
    media_position_offset: Annotated[int, Field(alias="unified_3d_mrope_temporal_modality_margin")]
    sound_gen: bool
    sound_dim: int | None = None
    sound_latent_fps: float | None = None
    # What the code takes for granted.
    hidden_act: Literal["silu"]
    attention_bias: Literal[False]
    qk_norm_for_text: Literal[True]
    unified_3d_mrope_reset_spatial_ids: Literal[True]
    video_temporal_causal: Literal[False] = False

    @model_validator(mode="before")
    @classmethod
    def _find_rope_sections(cls, data: dict[str, Any]) -> dict[str, Any]:
        """Newer files hold ``rope_axes_dim``, older ones ``rope_scaling.mrope_section``."""
        scaling = data.get("rope_scaling") or {}
        sections = data.get("rope_axes_dim") or scaling.get("mrope_section")
        return data | {"rope_sections": sections}

    @model_validator(mode="after")
    def _check(self) -> Self:
        _same(
            "num_attention_heads % num_key_value_heads",
            self.num_attention_heads % self.num_key_value_heads,
            0,
        )
        _same("sum of the rope sections", sum(self.rope_sections), self.head_dim // 2)
        patch = self.latent_patch_size**2 * self.latent_channel
        _same("patch_latent_dim", self.patch_latent_dim, patch)
        if self.sound_gen and not (self.sound_dim and self.sound_latent_fps):
            raise ValueError("sound_gen is true, but sound_dim or sound_latent_fps is missing")
        return self


class VideoVAEConfig(_Config):
    """``vae/config.json``."""

    base_dim: Count  # the encoder's
    decoder_base_dim: Count
    z_dim: Count
    dim_mult: tuple[Count, ...]
    num_res_blocks: Count
    temporal_downsample: Annotated[tuple[bool, ...], Field(alias="temperal_downsample")]
    in_channels: Count
    out_channels: Count
    patch_size: Count
    latents_mean: tuple[float, ...]
    latents_std: tuple[Positive, ...]
    is_residual: Literal[True]
    attn_scales: Annotated[tuple[()], BeforeValidator(tuple)]
    clip_output: bool = True
    scale_factor_temporal: Literal[4]
    scale_factor_spatial: Literal[16]

    @model_validator(mode="after")
    def _check(self) -> Self:
        _same("length of latents_mean", len(self.latents_mean), self.z_dim)
        _same("length of latents_std", len(self.latents_std), self.z_dim)
        _same("length of temperal_downsample", len(self.temporal_downsample), len(self.dim_mult) - 1)
        _same("frames per latent", 2 ** sum(self.temporal_downsample), shapes.FRAMES_PER_LATENT)
        pixels = self.patch_size * 2 ** len(self.temporal_downsample)
        _same("pixels per latent", pixels, shapes.PIXELS_PER_LATENT)
        for name, channels in (("in_channels", self.in_channels), ("out_channels", self.out_channels)):
            _same(name, channels, 3 * self.patch_size**2)
        return self


class SoundDecoderConfig(_Config):
    """The decoder's part of ``sound_tokenizer/config.json``."""

    sample_rate: Annotated[int, Field(alias="sampling_rate", gt=0)]
    latent_dim: Annotated[int, Field(alias="vocoder_input_dim", gt=0)]
    dec_dim: Count
    dec_c_mults: tuple[Count, ...]
    dec_strides: tuple[Count, ...]
    channels: Annotated[Literal[1, 2], Field(alias="dec_out_channels")]
    activation: Literal["snakebeta"]
    dec_type: Literal["oobleck"]
    snake_logscale: Literal[True]
    causal: Literal[False]

    @property
    def hop(self) -> int:
        """Samples per latent frame."""
        return math.prod(self.dec_strides)

    @property
    def widest(self) -> int:
        """Numbers to a latent frame of the decoder's largest tensor."""
        samples = itertools.accumulate(reversed(self.dec_strides), operator.mul)
        return max(self.dec_dim * width * n for width, n in zip((*self.dec_c_mults[-2::-1], 1), samples, strict=True))

    @model_validator(mode="after")
    def _check(self) -> Self:
        _same("length of dec_strides", len(self.dec_strides), len(self.dec_c_mults))
        return self


def require_sound(sound: SoundDecoderConfig | None) -> SoundDecoderConfig:
    """The sound decoder's config; ``InvalidInput`` where the checkpoint has none."""
    if sound is None:
        raise InvalidInput("generate_sound", True, "false", "this checkpoint has no sound decoder")
    return sound


class SchedulerConfig(_Config):
    """``scheduler/scheduler_config.json``: read for the ``checkpoint`` and ``karras`` schedules."""

    use_karras_sigmas: bool
    sigma_min: Positive | None = None
    sigma_max: Positive | None = None
    flow_shift: Positive
    num_train_timesteps: Literal[1000]
    prediction_type: Literal["flow_prediction"]
    use_flow_sigmas: Literal[True]
    solver_order: Literal[2]
    solver_type: Literal["bh2"]
    predict_x0: Literal[True]
    final_sigmas_type: Literal["zero"]


class PromptGuide(_Config):
    """``assets/prompt_guide.json``, of a checkpoint that knows one small world: how to prompt it.

    Attributes:
        summary: what the model makes, in a sentence.
        examples: prompts that it follows well.
        topics: what prompts can name, by topic.
        words: every word that it was trained on, in lower case.
        fixed_fields: fields of a request of which it was trained on the checkpoint's defaults alone.
    """

    summary: str
    examples: tuple[str, ...]
    topics: dict[str, tuple[str, ...]]
    words: tuple[str, ...]
    fixed_fields: tuple[Literal["width", "height", "num_frames", "fps"], ...]


def read_config(path: Path, kind: type[AnyConfig]) -> AnyConfig:
    """Read one config file.

    Raises:
        CheckpointError: naming the file, the field, what stands there and what was expected.
    """
    data = read_json(path)
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        if not field or first["type"] == "missing":
            raise CheckpointError(path, f"{field} {first['msg']}".strip()) from None
        raise CheckpointError(path, f"{field}: got {first['input']!r}, expected: {first['msg']}") from None


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; raises ``CheckpointError`` if the file is missing or holds something else."""
    text = read_text(path)
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(path, f"not readable as JSON ({error})") from None
    if not isinstance(data, dict):
        raise CheckpointError(path, f"got a JSON {type(data).__name__}, expected an object")
    return data


def read_text(path: Path) -> str:
    """Read a text file; raises ``CheckpointError`` if it is missing, unreadable, or not its content."""
    check_content(path)
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise CheckpointError(path, f"not readable as text ({error})") from None


def check_content(path: Path) -> None:
    """Raise ``CheckpointError`` where a file is missing, or is a stand-in for content that was never downloaded."""
    try:
        with path.open("rb") as file:
            start = file.read(len(LFS_POINTER))
    except FileNotFoundError:
        problem = f"the file is missing, because the link leads to {path.readlink()}" if path.is_symlink() else ""
        raise CheckpointError(path, problem or "the file is missing") from None
    except OSError as error:
        raise CheckpointError(path, f"not readable ({error})") from None
    if start == LFS_POINTER:
        problem = "got a Git LFS pointer, expected the file itself: run `git lfs pull` where the folder was cloned"
        raise CheckpointError(path, problem)


def is_there(path: Path) -> bool:
    """Whether the folder names the file. A broken link counts: it is an error and not an optional file left out."""
    return os.path.lexists(path)


def _same(what: str, got: object, expected: object) -> None:
    if got != expected:
        raise ValueError(f"the config contradicts itself: {what} is {got}, expected {expected}")
