"""Floating-point operations of a request, counted from the checkpoint's configs. A multiply-add is two.

Only matrix products, convolutions and attention count: everything else is a few percent of them. The formulas follow
the layers of ``transformer``, ``video_encoder``, ``video_decoder`` and ``sound_decoder`` one by one.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from cosmos3_models.checkpoint.configs import SoundDecoderConfig, TransformerConfig, VideoVAEConfig, require_sound
from cosmos3_models.checkpoint.folder import Checkpoint
from cosmos3_models.params import GenerationParams
from cosmos3_models.references import ReferenceKind, reference_frames
from cosmos3_models.shapes import LatentGrid, sound_latent_frames

CONVOLUTION = 3  # taps of the video autoencoder's kernels, in each of their dimensions
TIME_FREQUENCIES = 128  # of the timestep's sinusoid
RESIDUAL_UNITS = 3  # in a block of the sound decoder
SOUND_KERNEL = 7


class RequestFlops(NamedTuple):
    """Operations of one request.

    Attributes:
        text: of the text tower, once.
        step: of one sampler step, over all prompts.
        decode: of both decoders.
    """

    text: int
    step: int
    decode: int


def request_flops(checkpoint: Checkpoint, params: GenerationParams, prompt_tokens: Sequence[int]) -> RequestFlops:
    """Count one request.

    Args:
        prompt_tokens: length of each prompt that runs: the positive one and, with guidance, the negative one.

    Raises:
        InvalidInput: sound from a checkpoint without sound.
    """
    grid = LatentGrid.of_video(params.num_frames, params.height, params.width)
    decode = video_decode_flops(checkpoint.video_vae, grid)
    if params.generate_sound:
        decode += sound_decode_flops(require_sound(checkpoint.sound), _sound_frames(checkpoint, params))
    text = sum(text_flops(checkpoint.transformer, tokens) for tokens in prompt_tokens)
    return RequestFlops(text, step_flops(checkpoint, params, prompt_tokens), decode)


def step_flops(checkpoint: Checkpoint, params: GenerationParams, prompt_tokens: Sequence[int]) -> int:
    """Count one sampler step: a forward pass of the generation tower for each prompt. See ``request_flops``."""
    video, sound = _tokens(checkpoint, params)
    return sum(pass_flops(checkpoint.transformer, video, sound, tokens) for tokens in prompt_tokens)


def media_tokens(checkpoint: Checkpoint, params: GenerationParams) -> int:
    """Count the tokens of video and sound."""
    return sum(_tokens(checkpoint, params))


def reference_flops(checkpoint: Checkpoint, params: GenerationParams, kind: ReferenceKind) -> int:
    """Count the encode of a request's picture or clip: only of the frames on which its clean latent frames depend."""
    frames = reference_frames(params, kind)
    return video_encode_flops(checkpoint.video_vae, LatentGrid.of_video(frames, params.height, params.width))


def pass_flops(config: TransformerConfig, video_tokens: int, sound_tokens: int, text_tokens: int) -> int:
    """Count one forward pass of the generation tower: every media token attends to the text and all media tokens."""
    media, d = video_tokens + sound_tokens, config.hidden_size
    layers = config.num_hidden_layers * _layer_flops(config, media, text_tokens + media)
    ends = 4 * d * (video_tokens * config.patch_latent_dim + sound_tokens * (config.sound_dim or 0))
    time = 2 * (2 * TIME_FREQUENCIES * d + d * d)
    return layers + ends + time


def text_flops(config: TransformerConfig, tokens: int) -> int:
    """Count the text tower on one prompt of ``tokens``. Its last layer makes only keys and values.

    Attention counts as if it had no mask; a causal kernel may skip up to half of it.
    """
    keys_values = 2 * tokens * config.hidden_size * 2 * config.num_key_value_heads * config.head_dim
    return (config.num_hidden_layers - 1) * _layer_flops(config, tokens, tokens) + keys_values


def video_encode_flops(config: VideoVAEConfig, grid: LatentGrid) -> int:
    """Count the video encoder on the pictures of this grid."""
    widths = [config.base_dim * m for m in (1, *config.dim_mult)]
    levels = len(config.temporal_downsample)
    frames, height, width = grid.num_frames, grid.height << levels, grid.width << levels
    taps = CONVOLUTION**3
    total = 2 * frames * height * width * taps * config.in_channels * widths[0]
    for level, (inputs, outputs) in enumerate(pairwise(widths)):
        cells, more = frames * height * width, config.num_res_blocks - 1
        total += _residual_flops(inputs, outputs, cells) + more * _residual_flops(outputs, outputs, cells)
        if level == levels:
            break
        height, width = height // 2, width // 2
        total += 2 * frames * height * width * CONVOLUTION**2 * outputs**2
        if config.temporal_downsample[level]:  # all frames but the first
            total += 2 * (frames // 2) * height * width * CONVOLUTION * outputs**2
            frames = frames // 2 + 1
    moments = 2 * config.z_dim
    return total + _middle_flops(widths[-1], grid) + 2 * grid.cells * moments * (taps * widths[-1] + moments)


def video_decode_flops(config: VideoVAEConfig, grid: LatentGrid) -> int:
    """Count the video decoder on latents of this grid."""
    widths = [config.decoder_base_dim * m for m in (config.dim_mult[-1], *reversed(config.dim_mult))]
    doubles_time = (*reversed(config.temporal_downsample), False)
    frames, channels = grid.frames, widths[0]
    taps = CONVOLUTION**3
    total = 2 * grid.cells * config.z_dim * (config.z_dim + taps * channels) + _middle_flops(channels, grid)
    height, width = grid.height, grid.width
    for level, (inputs, outputs) in enumerate(pairwise(widths)):
        cells = frames * height * width
        total += _residual_flops(inputs, outputs, cells) + config.num_res_blocks * _residual_flops(
            outputs, outputs, cells
        )
        if level == len(widths) - 2:
            break
        if doubles_time[level]:  # all frames but the first
            total += 2 * (frames - 1) * height * width * CONVOLUTION * outputs * 2 * outputs
            frames = 2 * frames - 1
        total += 2 * frames * (height + 1) * (width + 1) * 4 * 4 * outputs**2  # four phases of 2 x 2 taps
        height, width = 2 * height, 2 * width
    return total + 2 * frames * height * width * taps * widths[-1] * config.out_channels


def sound_decode_flops(config: SoundDecoderConfig, latent_frames: int) -> int:
    """Count the sound decoder on this many latent frames."""
    widths = [config.dec_dim * m for m in reversed((1, *config.dec_c_mults))]
    length = latent_frames
    total = 2 * length * SOUND_KERNEL * config.latent_dim * widths[0]
    for (inputs, outputs), stride in zip(pairwise(widths), reversed(config.dec_strides), strict=True):
        total += 2 * length * 2 * stride * inputs * outputs  # transposed: counted by its inputs
        length *= stride
        total += RESIDUAL_UNITS * 2 * length * (SOUND_KERNEL + 1) * outputs**2
    return total + 2 * length * SOUND_KERNEL * widths[-1] * config.channels


def _layer_flops(config: TransformerConfig, tokens: int, keys: int) -> int:
    """One layer of either tower: four projections, attention, the three products of the MLP."""
    d, query = config.hidden_size, config.num_attention_heads * config.head_dim
    key_value = config.num_key_value_heads * config.head_dim
    linear = 2 * tokens * d * (2 * query + 2 * key_value + 3 * config.intermediate_size)
    return linear + 4 * tokens * keys * query


def _middle_flops(channels: int, grid: LatentGrid) -> int:
    """Two residual blocks, and attention within each frame."""
    area = grid.height * grid.width
    attention = grid.frames * (8 * area * channels**2 + 4 * area**2 * channels)
    return 2 * _residual_flops(channels, channels, grid.cells) + attention


def _residual_flops(inputs: int, outputs: int, cells: int) -> int:
    """Two convolutions, and a product of one tap where the width changes."""
    shortcut = 0 if inputs == outputs else inputs * outputs
    return 2 * cells * (CONVOLUTION**3 * outputs * (inputs + outputs) + shortcut)


def _tokens(checkpoint: Checkpoint, params: GenerationParams) -> tuple[int, int]:
    """Of the video and of its sound."""
    grid = LatentGrid.of_video(params.num_frames, params.height, params.width)
    video = grid.patches(checkpoint.transformer.latent_patch_size).cells
    return video, _sound_frames(checkpoint, params) if params.generate_sound else 0


def _sound_frames(checkpoint: Checkpoint, params: GenerationParams) -> int:
    sound = require_sound(checkpoint.sound)
    return sound_latent_frames(params.num_frames, params.fps, sound.sample_rate, sound.hop)
