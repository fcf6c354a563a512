"""Find the size of a video that suits a picture."""

import math
from itertools import product

from cosmos3_models.params import MAX_SIDE
from cosmos3_models.shapes import PIXELS_PER_LATENT


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
