"""Scenes to antialiased frames, all scenes, frames and pixels at once, on any device."""

import math

import torch
from torch import Tensor

from training.labels import KINDS
from training.scene import Scene, table

COLOUR = (  # red, green and blue of labels.COLOURS
    (0.90, 0.12, 0.12),
    (0.96, 0.52, 0.08),
    (0.95, 0.87, 0.12),
    (0.12, 0.70, 0.20),
    (0.10, 0.80, 0.85),
    (0.12, 0.30, 0.92),
    (0.52, 0.16, 0.80),
    (0.98, 0.40, 0.70),
)
GREY = (0.10, 0.45, 0.88)  # of labels.BACKGROUNDS
COLOUR_JITTER = 0.02
GREY_JITTER = 0.03
SHADE = 0.04  # of the background from its middle to top and bottom

# By labels.KINDS: corners, the inner corners' radius in that of the outer ones, the first corner's angle, and the
# radius in that of the circle around the shape. Circle and ring have no corners.
CORNERS = (3.0, 4.0, 3.0, 5.0, 3.0)
INNER = (0.5, math.cos(math.pi / 4), 0.5, 0.42, 0.5)
FIRST = (0.0, math.pi / 4, -math.pi / 2, -math.pi / 2, 0.0)
SCALE = (0.82, 1.0, 1.0, 1.0, 0.88)
RING_WIDTH = 0.36  # of the ring's radius
CIRCLE, RING = KINDS.index("circle"), KINDS.index("ring")


def draw_frames(
    scene: Scene, times: Tensor, side: int, window: Tensor | None = None, size: int | None = None
) -> Tensor:
    """Render a square window of the picture.

    Args:
        times: seconds of the frames, (t,).
        side: pixels of the whole picture.
        window: column and row of each scene's window, integers (n, 2); by default the whole picture.
        size: pixels of the window's side.

    Returns:
        fp32 (n, 3, t, size, size) in [-1, 1]
    """
    size = size or side
    columns, rows = _pixel_centres(scene, side, window, size)
    shade = SHADE * scene.tone[:, 1, None] * (2 * rows - 1)
    grey = table(GREY, scene.radius.device)[scene.background] + GREY_JITTER * scene.tone[:, 0]
    picture = (grey[:, None] + shade)[:, None, None, :, None].expand(-1, 3, len(times), -1, size)
    x, y, angle = scene.track(times)
    for shape in range(scene.present.shape[1]):
        across = columns[:, None, None, :] - x[:, shape, :, None, None]
        down = rows[:, None, :, None] - y[:, shape, :, None, None]
        distance = _distance(scene, shape, across, down, angle[:, shape, :, None, None])
        cover = (0.5 - distance * side).clamp(0, 1) * scene.present[:, shape, None, None, None]
        colour = _colour(scene, shape)[:, :, None, None, None]
        picture = picture + cover[:, None] * (colour - picture)
    return picture.clamp(0, 1) * 2 - 1


def _pixel_centres(scene: Scene, side: int, window: Tensor | None, size: int) -> tuple[Tensor, Tensor]:
    """x of the window's columns and y of its rows, (n, size) each."""
    pixels = torch.arange(size, device=scene.radius.device) + 0.5
    if window is None:
        window = torch.zeros(len(scene), 2, device=scene.radius.device)
    return (window[:, :1] + pixels) / side, (window[:, 1:] + pixels) / side


def _colour(scene: Scene, shape: int) -> Tensor:
    jitter = scene.tone[:, 2 + 3 * shape : 5 + 3 * shape]
    return (table(COLOUR, scene.radius.device)[scene.colour[:, shape]] + COLOUR_JITTER * jitter).clamp(0, 1)


def _distance(scene: Scene, shape: int, across: Tensor, down: Tensor, angle: Tensor) -> Tensor:
    """Signed distance from the outline, negative inside: (n, t, rows, columns).

    A regular polygon and a star are the same thing: seen from the middle, one edge from an outer to an inner corner,
    mirrored and turned.
    """
    kind = scene.kind[:, shape, None, None, None]
    corners, inner, first, scale = (table(values, angle.device)[kind] for values in (CORNERS, INNER, FIRST, SCALE))
    radius = scene.radius[:, shape, None, None, None] * scale
    length = (across.square() + down.square()).sqrt()
    circle = length - radius
    ring = (length - radius * (1 - RING_WIDTH / 2)).abs() - radius * RING_WIDTH / 2
    sector = 2 * math.pi / corners
    folded = ((torch.atan2(down, across) - angle - first + sector / 2) % sector - sector / 2).abs()
    inner_x, inner_y = inner * radius * (sector / 2).cos(), inner * radius * (sector / 2).sin()
    edge = (inner_y.square() + (radius - inner_x).square()).sqrt()
    along = (length * folded.cos() - radius) * inner_y + length * folded.sin() * (radius - inner_x)
    return torch.where(kind == CIRCLE, circle, torch.where(kind == RING, ring, along / edge))
