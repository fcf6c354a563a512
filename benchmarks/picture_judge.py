"""What a video of the world shows, by plain signal processing: shapes are saturated, everything behind them is grey.

Mixing with grey keeps a hue, and the share of the colour is the share of the pixel that a shape covers, so outlines
are known finer than a pixel. Positions and radii are in sides of the picture, angles are clockwise radians.
"""

import colorsys
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from training.labels import COLOURS, KINDS, SHAPES, SIZES, SPEEDS
from training.picture import COLOUR, CORNERS, INNER, RING_WIDTH, SCALE
from training.scene import HOP, HOP_HEIGHT, MOVE, ORBIT, RADIUS, ROLL, SPIN

Floats = NDArray[np.float64]

LEAST_CHROMA = 0.2  # of a pixel that belongs to a shape
LEAST_AREA = 0.002  # of the picture, of something that counts as a shape
LEAST_SHARE = 0.2  # of the area of the largest shape
SECTORS = 36  # of an outline
STILL = 0.03  # sides; what moves less is in its place
TURNS = math.radians(15)  # radians a second; what turns less does not
ROUNDNESS = 0.4  # of a path's shorter extent in its longer one; a rounder one is an orbit
STRAIGHTNESS = 0.97  # of the variance that a steady motion explains
HUES = np.array([colorsys.rgb_to_hsv(*colour)[0] for colour in COLOUR])


@dataclass(frozen=True)
class Seen:
    """One shape of a video. Attributes are named as in captions, None where nothing fits."""

    colour: str
    kind: str
    size: str
    motion: str | None
    direction: str | None
    speed: str | None
    x: Floats  # (t,)
    y: Floats  # (t,)
    contacts: list[float]  # seconds of the hits that can be timed: none within two frames of the ends


def look(frames: NDArray[np.uint8], fps: float) -> list[Seen]:
    """The shapes in frames (t, h, w, 3), largest first, at most two."""
    rgb = np.asarray(frames / 255, dtype=np.float32)
    chroma = rgb.max(-1) - rgb.min(-1)
    coloured = chroma > LEAST_CHROMA
    nearest = np.full(chroma.shape, -1)
    nearest[coloured] = _nearest_colour(rgb[coloured], chroma[coloured])
    areas = np.array([(nearest == colour).mean() for colour in range(len(COLOURS))])
    largest = np.argsort(-areas)[:SHAPES]
    enough = max(LEAST_AREA, LEAST_SHARE * areas[largest[0]])
    return [
        _describe(int(colour), np.where(nearest == colour, chroma, 0), fps)
        for colour in largest
        if areas[colour] > enough
    ]


def _nearest_colour(rgb: NDArray[np.float32], chroma: NDArray[np.float32]) -> NDArray[np.int64]:
    """Index of the palette's nearest hue, for pixels (n, 3) of these chromas (n,)."""
    red, green, blue = (rgb[..., channel] for channel in range(3))
    top, scale = rgb.max(-1), np.maximum(chroma, 1e-6)
    hue = np.where(
        top == red,
        (green - blue) / scale,
        np.where(top == green, 2 + (blue - red) / scale, 4 + (red - green) / scale),
    )
    distance = np.abs((hue[..., None] / 6 - HUES + 0.5) % 1 - 0.5)
    return np.asarray(distance.argmin(-1))


def _describe(colour: int, chroma: NDArray[np.float32], fps: float) -> Seen:
    """Attributes of the shape whose colour's chroma this is, (t, h, w)."""
    full = np.percentile(chroma[chroma > 0], 80)
    cover = np.clip(chroma / full, 0, 1)
    cover[cover < 0.1] = 0
    side = cover.shape[2]
    area = cover.sum((1, 2)) / side**2
    seen = area > LEAST_AREA / 2
    x, y = (_filled(values, seen) for values in _centres(cover))
    outlines = np.array([_outline(c, x[i] * side, y[i] * side) for i, c in enumerate(cover) if seen[i]])
    harmonics = np.fft.rfft(outlines, axis=1)
    hollow = np.mean([_hollow(c, x[i] * side, y[i] * side, area[i]) for i, c in enumerate(cover) if seen[i]])
    kind = _kind(harmonics, float(hollow))
    radius = math.sqrt(np.median(area[seen]) / _unit_area(kind))
    turning = _turning(harmonics, kind, fps)
    motion, direction, speed, contacts = _motion(x, y, turning, fps)
    size = SIZES[int(np.abs(np.log(np.array(RADIUS) / radius)).argmin())]
    return Seen(COLOURS[colour], KINDS[kind], size, motion, direction, speed, x, y, contacts)


def _centres(cover: NDArray[np.float32]) -> tuple[Floats, Floats]:
    """Centre of gravity of every frame: x and y (t,)."""
    pixels = (np.arange(cover.shape[2]) + 0.5) / cover.shape[2]
    total = np.maximum(cover.sum((1, 2)), 1e-6)
    return cover.sum(1) @ pixels / total, cover.sum(2) @ pixels / total


def _filled(values: Floats, seen: NDArray[np.bool_]) -> Floats:
    """Values of frames without the shape, from those around them."""
    index = np.arange(len(values))
    return np.interp(index, index[seen], values[seen])


def _outline(cover: NDArray[np.float32], x: float, y: float) -> Floats:
    """Radius in each sector around the centre, in pixels: that of a sector of the same area."""
    rows, columns = np.nonzero(cover)
    angle = np.arctan2(rows + 0.5 - y, columns + 0.5 - x)
    sector = np.floor(angle / (2 * math.pi) * SECTORS).astype(int) % SECTORS
    area = np.bincount(sector, weights=cover[rows, columns], minlength=SECTORS)
    return np.sqrt(area * SECTORS / math.pi)


def _hollow(cover: NDArray[np.float32], x: float, y: float, area: float) -> bool:
    """Whether the middle of the shape is empty."""
    reach = max(1.5, 0.3 * math.sqrt(area / math.pi) * cover.shape[1])
    rows, columns = np.ogrid[: cover.shape[0], : cover.shape[1]]
    inside = (rows + 0.5 - y) ** 2 + (columns + 0.5 - x) ** 2 <= reach**2
    return bool(cover[inside].mean() < 0.5)


def _kind(harmonics: NDArray[np.complex128], hollow: float) -> int:
    """Index of the kind whose outline has the nearest strengths of three-, four- and fivefold symmetry."""
    if hollow > 0.5:
        return KINDS.index("ring")
    measured = (np.abs(harmonics[:, 3:6]) / np.abs(harmonics[:, :1])).mean(0)
    solid = [kind for kind, name in enumerate(KINDS) if name != "ring"]
    ideal = np.array([_ideal_symmetry(kind) for kind in solid])
    return solid[int(((ideal - measured) ** 2).sum(1).argmin())]


def _ideal_outline(kind: int, sectors: int = 3600) -> Floats:
    """Radius by angle of an outline whose corners are at 1."""
    if KINDS[kind] in ("circle", "ring"):
        return np.ones(sectors)
    half = math.pi / CORNERS[kind]
    angle = np.arange(sectors) / sectors * 2 * math.pi
    folded = np.abs((angle + half) % (2 * half) - half)
    inner_x, inner_y = INNER[kind] * math.cos(half), INNER[kind] * math.sin(half)
    return inner_y / (inner_y * np.cos(folded) + (1 - inner_x) * np.sin(folded))


def _ideal_symmetry(kind: int) -> Floats:
    outline = np.sqrt((_ideal_outline(kind) ** 2).reshape(SECTORS, -1).mean(1))
    harmonics = np.abs(np.fft.rfft(outline))
    return np.asarray(harmonics[3:6] / harmonics[0])


def _unit_area(kind: int) -> float:
    """Area of the kind in a circle of radius 1 around it."""
    area = math.pi * float((_ideal_outline(kind) ** 2).mean()) * SCALE[kind] ** 2
    return area * (1 - (1 - RING_WIDTH) ** 2) if KINDS[kind] == "ring" else area


def _turning(harmonics: NDArray[np.complex128], kind: int, fps: float) -> float:
    """Radians a second that the outline turns clockwise; 0 for what is round."""
    if KINDS[kind] in ("circle", "ring") or len(harmonics) < 2:
        return 0.0
    order = int(CORNERS[kind])
    phase = np.unwrap(-np.angle(harmonics[:, order])) / order
    return float(np.polyfit(np.arange(len(phase)), phase, 1)[0]) * fps


def _motion(x: Floats, y: Floats, turning: float, fps: float) -> tuple[str | None, str | None, str | None, list[float]]:
    """Motion, direction, speed and contacts of a path."""
    wide, high = np.ptp(x), np.ptp(y)
    if max(wide, high) < STILL:
        if abs(turning) < TURNS:
            return None, None, None, []
        return "spin", _sense(turning), _speed(abs(turning), SPIN), []
    if min(wide, high) > ROUNDNESS * max(wide, high):
        rate = _orbit_rate(x, y) * fps
        return "orbit", _sense(rate), _speed(abs(rate), ORBIT), []
    path = x if wide > high else y
    time = np.arange(len(path)) / fps
    slope, offset = np.polyfit(time, path, 1)
    if np.var(path - slope * time - offset) < (1 - STRAIGHTNESS) * np.var(path):
        ways = ("left", "right") if wide > high else ("up", "down")
        return "move", ways[int(slope > 0)], _speed(abs(slope), MOVE), []
    if wide > high:
        rate = float(np.median(np.abs(np.diff(x)))) * fps
        contacts = sorted(_reversals(x, fps) + _reversals(-x, fps))
        return "bounce", "sideways", _speed(rate, ROLL), contacts
    fall = float(np.median(np.diff(y, 2))) * fps**2  # 8 height / period^2 while nothing is hit
    period = math.sqrt(8 * HOP_HEIGHT / max(fall, 1e-6))
    return "bounce", "up and down", _speed(1 / period, (1 / HOP[0], 1 / HOP[1])), _reversals(y, fps)


def _orbit_rate(x: Floats, y: Floats) -> float:
    """Radians a frame around the centre of the circle that fits the path best, clockwise."""
    system = np.stack([2 * x, 2 * y, np.ones_like(x)], axis=1)
    (centre_x, centre_y, _), *_ = np.linalg.lstsq(system, x**2 + y**2, rcond=None)
    angle = np.unwrap(np.arctan2(y - centre_y, x - centre_x))
    return float(np.polyfit(np.arange(len(angle)), angle, 1)[0])


def _reversals(path: Floats, fps: float) -> list[float]:
    """Seconds at which a path turns back from its high side, where the lines before and after meet."""
    times = []
    for k in range(2, len(path) - 2):
        before, after = path[k - 1] - path[k - 2], path[k + 2] - path[k + 1]
        if path[k] >= path[k - 1] and path[k] > path[k + 1] and before > 0 > after:
            meet = (path[k + 1] - after * (k + 1) - path[k - 1] + before * (k - 1)) / (before - after)
            times.append(float(meet) / fps)
    return times


def _sense(rate: float) -> str:
    return "clockwise" if rate > 0 else "counterclockwise"


def _speed(rate: float, rates: tuple[float, ...]) -> str:
    return SPEEDS[int(np.abs(np.log(np.array(rates) / max(rate, 1e-6))).argmin())]
