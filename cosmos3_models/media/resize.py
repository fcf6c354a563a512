"""Fit pictures of any size to the size of a video, and find the size that suits a picture."""

import math
from itertools import product

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from cosmos3_models.params import MAX_SIDE
from cosmos3_models.shapes import PIXELS_PER_LATENT

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


def natural_size(width: int, height: int, area: int) -> tuple[int, int]:
    """Return the size (width, height) of a video that has a picture's own ratio.

    Both sides are multiples of 16 from 16 to ``MAX_SIDE``. Of the sizes next to the exact one, the closest ratio wins
    among those with at most ``area`` pixels. The limits win over the ratio, and 16 over the area.

    Args:
        width, height: size of the picture, at least 1.
        area: pixels that a frame may have.
    """
    widths, heights = (_nearest_sides(math.sqrt(area * ratio)) for ratio in (width / height, height / width))
    fitting = [(w, h) for w, h in product(widths, heights) if w * h <= area] or [(widths[0], heights[0])]
    return min(fitting, key=lambda size: (abs(math.log(size[0] / size[1] * height / width)), -size[0] * size[1]))


def _nearest_sides(side: float) -> tuple[int, int]:
    """The multiples of 16 around a side, both within the limits."""
    below = int(side) // PIXELS_PER_LATENT * PIXELS_PER_LATENT
    limited = [min(max(value, PIXELS_PER_LATENT), MAX_SIDE) for value in (below, below + PIXELS_PER_LATENT)]
    return limited[0], limited[1]
