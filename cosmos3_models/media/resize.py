"""Fit pictures of any size to the size of a video."""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

Frames = NDArray[np.uint8]


def cover(frames: Frames, height: int, width: int) -> Frames:
    """Scale frames until they cover the target, and cut out its centre.

    Bilinear with antialiasing in fp32, halves rounded to even: the definition in diffusers and cosmos-framework, which
    the model's training used. Frames are converted one at a time.

    Args:
        frames: uint8 (n, h, w, 3), any size from 1 x 1.
        height, width: the target in pixels.

    Returns:
        uint8 (n, height, width, 3).
    """
    return np.stack([_cover(frame, height, width) for frame in frames])


def _cover(frame: Frames, height: int, width: int) -> Frames:
    source_height, source_width = frame.shape[:2]
    scale = max(width / source_width, height / source_height)
    # The product can exceed the target by 1e-13, which is one pixel more. The reference has it, too.
    scaled = (math.ceil(scale * source_height), math.ceil(scale * source_width))
    top, left = (round((have - want) / 2) for have, want in zip(scaled, (height, width), strict=True))
    pixels = torch.tensor(frame).permute(2, 0, 1)[None].float()  # (1, 3, h, w)
    pixels = functional.interpolate(pixels, size=scaled, mode="bilinear", align_corners=False, antialias=True)
    cut = pixels[0, :, top : top + height, left : left + width].round().clamp(0, 255)
    return cut.to(torch.uint8).permute(1, 2, 0).contiguous().numpy()
