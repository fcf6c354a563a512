"""Three-axis rotary positions (time, height, width) of text, video and sound tokens."""

import torch
from torch import Tensor

from cosmos3_models.checkpoint.configs import TransformerConfig
from cosmos3_models.kernels.token_ops import Rotary
from cosmos3_models.shapes import FRAMES_PER_LATENT, LatentGrid


def text_positions(length: int) -> Tensor:
    """Token k sits at (k, k, k); fp32 (3, length)."""
    return torch.arange(length, dtype=torch.float32).expand(3, length)


def video_positions(patches: LatentGrid, offset: int, fps: float, config: TransformerConfig) -> Tensor:
    """Positions of the video tokens, time-major; fp32 (3, patches.cells).

    Time runs at the trained frame rate: a video of another ``fps`` is stretched so that a second stays a second.
    """
    time = torch.arange(patches.frames, dtype=torch.float32)
    if config.enable_fps_modulation and patches.frames > 1:
        time = time / (fps / FRAMES_PER_LATENT) * (config.base_fps / FRAMES_PER_LATENT)
    rows = torch.arange(patches.height, dtype=torch.float32)
    columns = torch.arange(patches.width, dtype=torch.float32)
    return torch.stack(torch.meshgrid(time + offset, rows, columns, indexing="ij")).flatten(1)


def sound_positions(frames: int, offset: int, config: TransformerConfig) -> Tensor:
    """Positions of the sound tokens; fp32 (3, frames).

    A second of sound spans ``base_fps`` units and a second of video only ``base_fps / 4``: the streams share
    their origin, not their pace. The model was trained so.
    """
    if config.sound_latent_fps is None:
        raise ValueError("this transformer has no sound stream")
    time = torch.arange(frames, dtype=torch.float32)
    if config.enable_fps_modulation:
        time = time / config.sound_latent_fps * config.base_fps
    return torch.stack([time + offset, torch.zeros(frames), torch.zeros(frames)])


def rotary(positions: Tensor, config: TransformerConfig, device: torch.device, dtype: torch.dtype) -> Rotary:
    """The table for ``positions`` (3, n).

    Angles are fp32 until the cast at the end: media positions start near 15,000, where bf16 steps by 64.
    """
    slots = torch.arange(config.head_dim // 2)
    frequency = 1.0 / config.rope_theta ** (2 * slots.float() / config.head_dim)
    angles = positions.T[:, _axis_of_slot(config.rope_sections)] * frequency  # (n, head_dim / 2)
    return Rotary(angles.cos().to(device, dtype), angles.sin().to(device, dtype))


def _axis_of_slot(sections: tuple[int, int, int]) -> Tensor:
    """Which axis turns each rotary slot: THWTHW… while height and width last, then time alone."""
    _, height, width = sections
    axis = torch.zeros(sum(sections), dtype=torch.long)
    axis[1 : 3 * height : 3] = 1
    axis[2 : 3 * width : 3] = 2
    return axis
