"""What the demo knows, from the caption grammar: for its web page, and as a table for its model card."""

import re
from collections.abc import Iterable, Iterator
from typing import Any

from training.captions import ADVERBS, BACKDROPS, JOINTS, NOUNS, PLACES, VERBS
from training.labels import BACKGROUNDS, COLOURS, SIZES
from training.tone import PITCH_HZ

SUMMARY = "One or two flat, coloured shapes that move on a plain background, with a note for each colour."
EXAMPLES = (
    "A large red ball bounces slowly on the floor.",
    "A small yellow star spins fast clockwise on a dark background.",
    "On the left a small green ring rises quickly, and on the right a medium orange disc sinks slowly.",
    "A medium cyan square orbits gently counterclockwise in front of a grey background.",
    "At the top a small pink triangle moves fast to the right; at the bottom a medium blue circle glides slowly"
    " from right to left against a light background.",
)
FIXED_FIELDS = ("width", "height", "num_frames", "fps")  # the world has one size and one length


def prompt_guide() -> dict[str, Any]:
    """The content of ``assets/prompt_guide.json``."""
    return {
        "summary": SUMMARY,
        "examples": list(EXAMPLES),
        "topics": topics(),
        "words": sorted(set(re.findall("[a-z]+", " ".join(_phrases()).lower()))),
        "fixed_fields": list(FIXED_FIELDS),
    }


def topics() -> dict[str, list[str]]:
    """What can be chosen, by topic; phrases of one meaning stand together."""
    return {
        "shapes": [_any_of(nouns) for nouns in NOUNS.values()],
        "colours": list(COLOURS),
        "sizes": list(SIZES),
        "motions": [_any_of(_without_adverb(phrase) for phrase in phrases) for phrases in VERBS.values()],
        "speeds": [_any_of(adverbs) for adverbs in ADVERBS.values()],
        "places of two shapes": [" and ".join(pair) for pair in PLACES.values()],
        "backgrounds": [BACKDROPS[0].format(background) for background in BACKGROUNDS],
        "notes": [f"{colour} {pitch} Hz" for colour, pitch in zip(COLOURS, PITCH_HZ, strict=True)],
    }


def table() -> str:
    """The topics as a table for the model card."""
    rows = [f"| {topic} | {'; '.join(choices)} |" for topic, choices in topics().items()]
    return "\n".join(["| topic | choices |", "|---|---|", *rows])


def _phrases() -> Iterator[str]:
    """Every phrase that stands in a caption."""
    yield from ("a", "an")
    for group in (*NOUNS.values(), *ADVERBS.values(), *PLACES.values(), JOINTS, COLOURS, SIZES, BACKGROUNDS):
        yield from group
    yield from (_without_adverb(phrase) for phrases in VERBS.values() for phrase in phrases)
    yield from (backdrop.format("") for backdrop in BACKDROPS)


def _without_adverb(phrase: str) -> str:
    return " ".join(phrase.format(how="").split())


def _any_of(phrases: Iterable[str]) -> str:
    return " / ".join(phrases)
