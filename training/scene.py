"""Labels become geometry: where each shape is at any time, how large, which way round, and when it hits something.

Lengths are in sides of the square picture, x to the right and y down; times are in seconds. All tensors of a scene
are (n, 2) over scenes and their two shapes unless said otherwise.
"""

import math
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor

from training.labels import ALONE, MOTIONS, SHAPES, SIDE_BY_SIDE, STACKED, Integers, Labels

RADIUS = (0.125, 0.16, 0.205)  # of the circle around a shape, by size
MARGIN = 0.02  # between a shape and the border of its lane
HOP_HEIGHT = 0.34  # with HOP, so low and slow that a shape goes no further in a frame than it is wide
ORBIT_RADIUS = 0.2  # at most; a lane allows less
# By speed, slow then fast.
MOVE = (0.09, 0.19)  # sides a second
ROLL = (0.35, 0.65)  # sides a second, from wall to wall
HOP = (1.6, 1.1)  # seconds from floor to floor
ORBIT = (math.radians(100), math.radians(190))  # radians a second
SPIN = (math.radians(60), math.radians(150))  # radians a second
JITTER = 0.05  # of radii and speeds, to either side
CONTACTS = 6  # at most, of one shape in one clip


@cache
def table(values: tuple[Any, ...], device: torch.device) -> Tensor:
    """``values`` on the device, sent once: a GPU would stop for every transfer."""
    return torch.tensor(values, device=device)


@dataclass(frozen=True)
class Scene:
    """Scenes ready to be drawn and heard. ``x`` and ``y`` are where a shape is in the middle of its motion."""

    labels: Labels
    present: Tensor  # 1, or 0 for the second shape of a scene with one
    kind: Tensor
    colour: Tensor
    size: Tensor
    motion: Tensor
    background: Tensor  # (n,)
    radius: Tensor
    x: Tensor
    y: Tensor
    rate: Tensor  # sides, hops or radians a second, by motion; the direction's sign is in it
    reach: Tensor  # what a bounce or an orbit spans: sides
    phase: Tensor  # of a bounce, an orbit or a spin at time 0: 0 to 2
    tone: Tensor  # (n, 8) random numbers in -1 to 1 for colours and light
    duration: float

    def __len__(self) -> int:
        return len(self.present)

    def track(self, times: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x, y and angle (n, 2, t) at ``times`` (t,); angles are clockwise, and 0 for an upright shape."""
        x, y, rate = self.x[..., None], self.y[..., None], self.rate[..., None]
        phase, reach = self.phase[..., None], self.reach[..., None]
        step = rate * (times - self.duration / 2)
        turn = phase * math.pi + rate * times
        cycle = phase + rate * times
        triangle = 1 - (cycle % 2 - 1).abs() - 0.5
        hop = 0.5 - 4 * (cycle % 1) * (1 - cycle % 1)
        x = x + step * self._is("move", "left", "right") + reach * triangle * self._is("bounce", "sideways")
        x = x + reach * turn.cos() * self._is("orbit")
        y = y + step * self._is("move", "up", "down") + reach * hop * self._is("bounce", "up and down")
        y = y + reach * turn.sin() * self._is("orbit")
        return x, y, turn * self._is("spin")

    def later(self, seconds: Tensor) -> "Scene":
        """The scenes ``seconds`` (n,) further on, wherever that takes the shapes: moves may leave the picture."""
        passed = self.rate * seconds[:, None]
        across, down = (self._is("move", *ways)[..., 0] for ways in (("left", "right"), ("up", "down")))
        turned = self._is("orbit")[..., 0] + self._is("spin")[..., 0]
        return replace(
            self,
            x=self.x + passed * across,
            y=self.y + passed * down,
            phase=(self.phase + passed * (self._is("bounce")[..., 0] + turned / math.pi)) % 2,
        )

    def contacts(self) -> Tensor:
        """When each shape hits a wall or the floor: seconds (n, 2, k), infinite where it does not."""
        count = torch.arange(1, CONTACTS + 1, device=self.phase.device)
        times = (count - self.phase[..., None] % 1) / self.rate[..., None].abs()
        real = (self._is("bounce") * self.present[..., None] > 0) & (times < self.duration)
        return torch.where(real, times, math.inf)

    def _is(self, verb: str, *directions: str) -> Tensor:
        """1 where a shape's motion is this verb in one of these directions (any, if none is named), (n, 2, 1)."""
        wanted = tuple(float(name == verb and (not directions or way in directions)) for name, way in MOTIONS)
        return table(wanted, self.motion.device)[self.motion][..., None]


def draw_scene(labels: Labels, duration: float, generator: torch.Generator) -> Scene:
    """Draw everything that the labels leave open, on the generator's device."""
    device = generator.device
    shape = (len(labels), SHAPES)
    kind, colour, size, motion, speed, layout, background = (
        _sent(array, device)
        for array in (
            labels.kind,
            labels.colour,
            labels.size,
            labels.motion,
            labels.speed,
            labels.layout,
            labels.background,
        )
    )
    uniform = torch.rand(6, *shape, generator=generator, device=device)
    radius = table(RADIUS, device)[size] * (1 + JITTER * (2 * uniform[0] - 1))
    left, right, top, bottom = _free(layout, radius)
    rate = _rate(motion, speed) * (1 + JITTER * (2 * uniform[1] - 1))
    reach, rate = _reach(motion, rate, radius, left, right, top, bottom)
    span_x, span_y = _span(motion, rate, reach, duration)
    spins = table(tuple(verb == "spin" for verb, _ in MOTIONS), device)[motion]
    return Scene(
        labels=labels,
        present=torch.stack([torch.ones_like(layout), (layout != ALONE).long()], dim=1).float(),
        kind=kind,
        colour=colour,
        size=size,
        motion=motion,
        background=background,
        radius=radius,
        x=_between(left, right, span_x, uniform[2]),
        y=_between(top, bottom, span_y, uniform[3]),
        rate=rate,
        reach=reach,
        phase=torch.where(spins, 0.0, 2 * uniform[4]),
        tone=2 * torch.rand(len(labels), 8, generator=generator, device=device) - 1,
        duration=duration,
    )


def _sent(array: Integers, device: torch.device) -> Tensor:
    """``array`` on the device. From pinned memory, for any other copy waits until a GPU has done all it has to do."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def _free(layout: Tensor, radius: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Where a shape's centre may be: left, right, top and bottom of its lane, less the shape."""
    first = table((0.0, 0.5), radius.device).expand_as(radius)
    columns, rows = (layout == SIDE_BY_SIDE)[:, None], (layout == STACKED)[:, None]
    left, top = first * columns, first * rows
    right, bottom = left + 1 - 0.5 * columns.float(), top + 1 - 0.5 * rows.float()
    inset = radius + MARGIN
    return left + inset, right - inset, top + inset, bottom - inset


def _rate(motion: Tensor, speed: Tensor) -> Tensor:
    """Sides, hops or radians a second; left, up and counterclockwise are negative."""
    tables = {"move": MOVE, "orbit": ORBIT, "spin": SPIN, "bounce": ROLL}
    rates = []
    for verb, way in MOTIONS:
        sign = -1 if way in ("left", "up", "counterclockwise") else 1
        pair = [1 / period for period in HOP] if way == "up and down" else tables[verb]
        rates.append(tuple(sign * rate for rate in pair))
    return table(tuple(rates), motion.device)[motion, speed]


def _reach(
    motion: Tensor, rate: Tensor, radius: Tensor, left: Tensor, right: Tensor, top: Tensor, bottom: Tensor
) -> tuple[Tensor, Tensor]:
    """What a bounce or an orbit spans, and the rate, that of a rolling bounce now in walls a second."""
    verbs, ways = (table(_ids(names), motion.device)[motion] for names in zip(*MOTIONS, strict=True))
    rolls, hops = ways == _id("sideways"), ways == _id("up and down")
    width, height = right - left, bottom - top
    orbit = torch.minimum(torch.minimum(width, height) / 2, torch.full_like(radius, ORBIT_RADIUS))
    reach = torch.where(verbs == _id("orbit"), orbit, torch.zeros_like(radius))
    reach = torch.where(rolls, width, reach)
    reach = torch.where(hops, torch.full_like(radius, HOP_HEIGHT), reach)
    return reach, torch.where(rolls, rate / width, rate)


def _span(motion: Tensor, rate: Tensor, reach: Tensor, duration: float) -> tuple[Tensor, Tensor]:
    """How much of its lane a motion covers, across and down."""
    verbs, ways = (table(_ids(names), motion.device)[motion] for names in zip(*MOTIONS, strict=True))
    moves, travel = verbs == _id("move"), rate.abs() * duration
    across = moves & ((ways == _id("left")) | (ways == _id("right")))
    circle = 2 * reach * (verbs == _id("orbit"))
    span_x = circle + travel * across + reach * (ways == _id("sideways"))
    span_y = circle + travel * (moves & ~across) + reach * (ways == _id("up and down"))
    return span_x, span_y


def _between(low: Tensor, high: Tensor, span: Tensor, uniform: Tensor) -> Tensor:
    """The middle of a span that lies between low and high, or in their middle if it is longer."""
    slack = (high - low - span).clamp_min(0)
    return (low + high) / 2 + slack * (uniform - 0.5)


NAMES = tuple(sorted({name for motion in MOTIONS for name in motion}))


def _id(name: str) -> int:
    return NAMES.index(name)


def _ids(names: tuple[str, ...]) -> tuple[int, ...]:
    return tuple(_id(name) for name in names)
