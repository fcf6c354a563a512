"""What there is in the world: the attributes of a scene, which combinations are never trained on, and how to draw."""

from dataclasses import dataclass, fields
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray

Integers = NDArray[np.int64]
Part = Literal["train", "unseen", "held_out"]

KINDS = ("circle", "square", "triangle", "star", "ring")
COLOURS = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink")
SIZES = ("small", "medium", "large")
SPEEDS = ("slow", "fast")
BACKGROUNDS = ("dark", "grey", "light")
LAYOUTS = ("alone", "side by side", "stacked")
MOTIONS = (
    ("move", "left"),
    ("move", "right"),
    ("move", "up"),
    ("move", "down"),
    ("bounce", "sideways"),
    ("bounce", "up and down"),
    ("orbit", "clockwise"),
    ("orbit", "counterclockwise"),
    ("spin", "clockwise"),
    ("spin", "counterclockwise"),
)
SHAPES = 2  # at most, in one scene

ALONE, SIDE_BY_SIDE, STACKED = range(len(LAYOUTS))
MOTION_INDEX = {motion: index for index, motion in enumerate(MOTIONS)}
VERTICAL = tuple(MOTION_INDEX[motion] for motion in (("move", "up"), ("move", "down"), ("bounce", "up and down")))
HORIZONTAL = tuple(MOTION_INDEX[motion] for motion in (("move", "left"), ("move", "right"), ("bounce", "sideways")))
SPINS = tuple(index for index, (verb, _) in enumerate(MOTIONS) if verb == "spin")
HOPS = MOTION_INDEX["bounce", "up and down"]
ROUND = (KINDS.index("circle"), KINDS.index("ring"))  # whose spin nobody can see

# Kind and colour that never meet in training.
HELD_OUT = tuple(
    (KINDS.index(kind), COLOURS.index(colour))
    for kind, colour in (
        ("circle", "purple"),
        ("square", "blue"),
        ("triangle", "green"),
        ("star", "red"),
        ("ring", "yellow"),
    )
)
HARD_KIND = KINDS.index("star")  # outlines of stars, of whatever spins, and of fast hops are learnt last
ROUND_SPIN_SHARE = 0.25  # of the round shapes to train on may be told to spin: they look still, not like a square
PAIR_SHARE = 0.3  # of the scenes have two shapes
UNSEEN_SHARE = 16  # one of so many scenes is kept from training, whatever its seed


@dataclass(frozen=True)
class Labels:
    """The attributes of n scenes as indexes into the tuples above.

    Attributes:
        layout, background: (n,).
        kind, colour, size, motion, speed: (n, 2); the second shape counts unless the layout is "alone".
    """

    layout: Integers
    background: Integers
    kind: Integers
    colour: Integers
    size: Integers
    motion: Integers
    speed: Integers

    def __len__(self) -> int:
        return len(self.layout)

    def __getitem__(self, index: Integers | NDArray[np.bool_] | slice) -> Self:
        return type(self)(*(getattr(self, field.name)[index] for field in fields(self)))

    def shapes(self, scene: int) -> int:
        """How many shapes a scene has."""
        return 1 if self.layout[scene] == ALONE else SHAPES

    def arrays(self) -> dict[str, Integers]:
        """The attributes by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


def draw_labels(random: np.random.Generator, count: int, part: Part = "train") -> Labels:
    """Draw ``count`` scenes of one part of the world.

    ``train`` has neither held-out pairs nor reserved scenes, ``unseen`` has reserved scenes without held-out pairs,
    and in ``held_out`` the first shape is always a held-out pair.
    """
    kept = [_candidates(random, 0, part)]
    while sum(map(len, kept)) < count:
        drawn = _candidates(random, count * (1 if part == "train" else UNSEEN_SHARE), part)
        kept.append(drawn[_belongs(drawn, part)])
    return _joined(kept)[slice(0, count)]


def draw_hard_labels(random: np.random.Generator, count: int) -> Labels:
    """Draw scenes to train on: those whose first shape is hard to learn come twice as often as in the world."""
    drawn = draw_labels(random, 2 * count)
    return drawn[np.argsort(~hard(drawn), kind="stable")[:count]]


def hard(labels: Labels) -> NDArray[np.bool_]:
    """In which scenes (n,) the first shape is a star, shows that it spins, or bounces fast on the floor."""
    kind, motion, speed = labels.kind[:, 0], labels.motion[:, 0], labels.speed[:, 0]
    spins = np.isin(motion, SPINS) & ~np.isin(kind, ROUND)
    return np.asarray((kind == HARD_KIND) | spins | ((motion == HOPS) & (speed == SPEEDS.index("fast"))))


def held_out(labels: Labels) -> NDArray[np.bool_]:
    """Which shapes (n, 2) are pairs of kind and colour that training never shows."""
    pairs = np.array(HELD_OUT)
    met = (labels.kind[..., None] == pairs[:, 0]) & (labels.colour[..., None] == pairs[:, 1])
    present = np.stack([np.ones(len(labels), dtype=bool), labels.layout != ALONE], axis=1)
    return np.asarray(met.any(-1) & present)


def reserved(labels: Labels) -> NDArray[np.bool_]:
    """Which scenes (n,) are kept from training: a fixed function of what can be seen."""
    first, second = (_code(labels, shape) for shape in range(SHAPES))
    second = np.where(labels.layout == ALONE, 0, second)
    mixed = (first * 7919 + second * 104729 + labels.layout * 31 + labels.background * 17) * 2654435761
    return np.asarray((mixed >> 16) % UNSEEN_SHARE == 0)


def _code(labels: Labels, shape: int) -> Integers:
    code = np.zeros(len(labels), dtype=np.int64)
    for values, size in (
        (labels.kind, len(KINDS)),
        (labels.colour, len(COLOURS)),
        (labels.size, len(SIZES)),
        (labels.motion, len(MOTIONS)),
        (labels.speed, len(SPEEDS)),
    ):
        code = code * size + values[:, shape]
    return code


def _belongs(labels: Labels, part: Part) -> NDArray[np.bool_]:
    forbidden = held_out(labels)
    if part == "held_out":
        return np.asarray(forbidden[:, 0])
    clean = ~forbidden.any(1)
    return np.asarray(clean & (reserved(labels) == (part == "unseen")))


def _candidates(random: np.random.Generator, count: int, part: Part) -> Labels:
    """Scenes that can be drawn: pairs fit their lanes and differ in colour. To judge, nothing round spins."""
    shape = (count, SHAPES)
    layout = np.where(random.random(count) < PAIR_SHARE, random.integers(1, len(LAYOUTS), count), ALONE)
    kind, colour = random.integers(len(KINDS), size=shape), random.integers(len(COLOURS), size=shape)
    if part == "held_out":
        kind[:, 0], colour[:, 0] = np.array(HELD_OUT)[random.integers(len(HELD_OUT), size=count)].T
    other = (colour[:, 0] + random.integers(1, len(COLOURS), count)) % len(COLOURS)
    colour[:, 1] = other
    pair = (layout != ALONE)[:, None]
    size = np.where(pair, random.integers(len(SIZES) - 1, size=shape), random.integers(len(SIZES), size=shape))
    return Labels(
        layout=layout,
        background=random.integers(len(BACKGROUNDS), size=count),
        kind=kind,
        colour=colour,
        size=size,
        motion=_motions(random, layout, kind, ROUND_SPIN_SHARE if part == "train" else 0),
        speed=random.integers(len(SPEEDS), size=shape),
    )


def _motions(random: np.random.Generator, layout: Integers, kind: Integers, round_spins: float) -> Integers:
    """A motion for each shape among those that its lane and its kind allow."""
    allowed = np.ones((*kind.shape, len(MOTIONS)), dtype=bool)
    allowed[layout == SIDE_BY_SIDE] &= ~_among(HORIZONTAL)
    allowed[layout == STACKED] &= ~_among(VERTICAL)
    preferences = random.random(allowed.shape)
    still = np.isin(kind, ROUND)
    if round_spins:
        still &= random.random(kind.shape) >= round_spins
    allowed[still] &= ~_among(SPINS)
    return np.asarray((preferences * allowed).argmax(-1))


def _among(motions: tuple[int, ...]) -> NDArray[np.bool_]:
    return np.isin(np.arange(len(MOTIONS)), motions)


def _joined(parts: list[Labels]) -> Labels:
    return Labels(*(np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(Labels)))
