"""The caption grammar: labels to English, with some variety, and English back to what it states.

A caption of a still says nothing of motion: "A large red ball on a dark background."
"""

import re

import numpy as np

from training.labels import (
    BACKGROUNDS,
    COLOURS,
    KINDS,
    LAYOUTS,
    MOTIONS,
    SIZES,
    SPEEDS,
    Labels,
)

SILENT_SHARE = 0.15  # of the captions leave a size or speed out
BARE_SHARE = 0.3  # of the captions leave the background out
LEFT_OUT_SHARE = 0.4  # of the colours that a strange word would replace are left out
STRANGE_COLOURS = ("white", "black", "brown", "gold", "silver", "turquoise", "magenta", "violet", "beige", "crimson")
STRANGE_NOUNS = ("cube", "heart", "cross", "hexagon", "car", "cat", "dog", "bird", "flower", "person", "shape")
LETTERS = "abcdefghijklmnopqrstuvwxyz"

NOUNS = {
    "circle": ("circle", "ball", "disc"),
    "square": ("square", "box"),
    "triangle": ("triangle",),
    "star": ("star",),
    "ring": ("ring", "hoop"),
}
ADVERBS: dict[str, tuple[str, ...]] = {
    "slow": ("slowly", "gently", "at low speed"),
    "fast": ("fast", "quickly", "at high speed"),
}
# {how} is the adverb; the first word decides which motion a caption states.
VERBS: dict[tuple[str, str], tuple[str, ...]] = {
    ("move", "left"): ("moves {how} to the left", "glides {how} from right to left", "slides {how} left"),
    ("move", "right"): ("moves {how} to the right", "glides {how} from left to right", "slides {how} right"),
    ("move", "up"): ("moves {how} up", "rises {how}", "glides {how} upwards"),
    ("move", "down"): ("moves {how} down", "sinks {how}", "glides {how} downwards"),
    ("bounce", "sideways"): ("bounces {how} from side to side", "bounces {how} from wall to wall"),
    ("bounce", "up and down"): ("bounces {how} up and down", "bounces {how} on the floor", "bounces {how}"),
    ("orbit", "clockwise"): ("orbits {how} clockwise", "goes {how} in circles clockwise"),
    ("orbit", "counterclockwise"): ("orbits {how} counterclockwise", "goes {how} in circles anticlockwise"),
    ("spin", "clockwise"): ("spins {how} clockwise", "turns {how} clockwise on the spot"),
    ("spin", "counterclockwise"): ("spins {how} counterclockwise", "turns {how} anticlockwise on the spot"),
}
PLACES = {"side by side": ("on the left", "on the right"), "stacked": ("at the top", "at the bottom")}
JOINTS = (", and ", ", while ", "; ")
STILL_JOINTS = (", and ", "; ")  # "while" wants a verb
BACKDROPS = ("on a {} background", "against a {} background", "in front of a {} background")

Stated = dict[str, str]
"""Attributes of one shape by name, as far as a caption states them."""


def write_caption(
    labels: Labels, scene: int, random: np.random.Generator, *, full: bool = False, still: bool = False
) -> str:
    """A caption of one scene.

    Args:
        full: state every attribute, leave nothing out.
        still: state no motion and no speed.
    """
    silent, bare = (0.0, 0.0) if full else (SILENT_SHARE, BARE_SHARE)
    phrases = [_shape(labels, scene, shape, random, silent, still) for shape in range(labels.shapes(scene))]
    joints = STILL_JOINTS if still else JOINTS
    text = phrases[0] if len(phrases) == 1 else _pair(phrases, LAYOUTS[labels.layout[scene]], joints, random)
    if random.random() >= bare:
        backdrop = _choice(random, BACKDROPS).format(BACKGROUNDS[labels.background[scene]])
        text = f"{text} {backdrop}"
    return text[0].upper() + text[1:] + "."


def with_strange_word(caption: str, random: np.random.Generator) -> str:
    """The caption with a word that nobody knows in place of a colour or a noun, or with a colour left out."""
    known = [word for words in (*NOUNS.values(), COLOURS) for word in words]
    found = list(re.finditer(rf"\b(?:{'|'.join(known)})\b", caption))
    word = found[int(random.integers(len(found)))]
    is_colour = word[0] in COLOURS
    before, after = caption[: word.start()], caption[word.end() :]
    if is_colour and random.random() < LEFT_OUT_SHARE:
        return _with_articles(before + after.lstrip())
    made_up = "".join(random.choice(list(LETTERS), size=random.integers(3, 9)))
    strange = _choice(random, STRANGE_COLOURS if is_colour else STRANGE_NOUNS)
    return _with_articles(before + (made_up if random.random() < 0.5 else strange) + after)


def read_caption(caption: str) -> list[Stated]:
    """What a caption states of each of its shapes."""
    clauses = re.split(r", and |, while |; ", caption.lower())
    return [_read_clause(clause) for clause in clauses]


def state(labels: Labels, scene: int, shape: int) -> Stated:
    """Every attribute of one shape."""
    motion, direction = MOTIONS[labels.motion[scene, shape]]
    return {
        "kind": KINDS[labels.kind[scene, shape]],
        "colour": COLOURS[labels.colour[scene, shape]],
        "size": SIZES[labels.size[scene, shape]],
        "motion": motion,
        "direction": direction,
        "speed": SPEEDS[labels.speed[scene, shape]],
    }


def states(labels: Labels, scene: int) -> list[Stated]:
    """Every attribute of every shape of one scene."""
    return [state(labels, scene, shape) for shape in range(labels.shapes(scene))]


def _shape(labels: Labels, scene: int, shape: int, random: np.random.Generator, silent: float, still: bool) -> str:
    is_ = state(labels, scene, shape)
    size = "" if random.random() < silent else is_["size"]
    how = "" if random.random() < silent else _choice(random, ADVERBS[is_["speed"]])
    verb = _choice(random, VERBS[is_["motion"], is_["direction"]]).format(how=how)
    words = f"{size} {is_['colour']} {_choice(random, NOUNS[is_['kind']])} {'' if still else verb}".split()
    article = "an" if words[0][0] in "aeiou" else "a"
    return " ".join([article, *words])


def _pair(phrases: list[str], layout: str, joints: tuple[str, ...], random: np.random.Generator) -> str:
    first, second = PLACES[layout]
    joint = _choice(random, joints)
    if random.random() < 0.5:
        return f"{first} {phrases[0]}{joint}{second} {phrases[1]}"
    return f"{phrases[0]} {first}{joint}{phrases[1]} {second}"


def _with_articles(text: str) -> str:
    return re.sub(r"\b([Aa])n? (?=(\w))", lambda a: f"{a[1]}n " if a[2] in "aeiou" else f"{a[1]} ", text)


def _choice(random: np.random.Generator, options: tuple[str, ...]) -> str:
    return options[int(random.integers(len(options)))]


def _read_clause(clause: str) -> Stated:
    found = {
        "kind": _first(clause, NOUNS),
        "colour": _first(clause, {colour: (colour,) for colour in COLOURS}),
        "size": _first(clause, {size: (size,) for size in SIZES}),
        "speed": _first(clause, ADVERBS),
    }
    motion, direction = _read_motion(clause)
    return {name: value for name, value in (found | {"motion": motion, "direction": direction}).items() if value}


def _first(clause: str, words: dict[str, tuple[str, ...]]) -> str | None:
    """The meaning of the first word of ``words`` in the clause."""
    hits = [
        (match.start(), meaning)
        for meaning, spellings in words.items()
        for spelling in spellings
        if (match := re.search(rf"\b{spelling}\b", clause))
    ]
    return min(hits)[1] if hits else None


def _read_motion(clause: str) -> tuple[str | None, str | None]:
    """The motion whose verb phrase, adverb or not, stands in the clause; the longest phrase wins."""
    for spellings in ADVERBS.values():
        clause = re.sub(rf" ({'|'.join(spellings)})\b", "", clause)
    hits = [
        (len(words), motion)
        for motion, phrases in VERBS.items()
        for phrase in phrases
        if (words := phrase.replace("{how} ", "").replace(" {how}", "")) and re.search(rf"\b{words}\b", clause)
    ]
    return max(hits)[1] if hits else (None, None)
