"""Compares a video with sound to what its prompt states, attribute by attribute.

Run by itself it judges real clips of the world, on which it must be right:
python -m benchmarks.judge --clips 300
"""

import argparse
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks import sound_judge
from benchmarks.picture_judge import Seen, look
from training.captions import Stated, states
from training.labels import Part
from training.recipe import Recipe
from training.world import Draw, World

PICTURE = ("colour", "kind", "size", "motion", "direction", "speed")
PAN_TOLERANCE = 0.1  # mean distance of a note's place from its shape's, in sides of the picture
LATEST_CLICK_S = 0.08


@dataclass
class Verdict:
    """What is right of one clip or, added up, of many: attribute to answers."""

    right: dict[str, list[bool]] = field(default_factory=lambda: defaultdict(list))
    delays_s: list[float] = field(default_factory=list)  # of a click to the hit that it belongs to

    def __iadd__(self, other: "Verdict") -> "Verdict":
        for name, answers in other.right.items():
            self.right[name] += answers
        self.delays_s += other.delays_s
        return self

    def accuracy(self) -> dict[str, float]:
        """Share of right answers by attribute, and the median delay of the clicks in seconds."""
        shares = {name: float(np.mean(answers)) for name, answers in self.right.items()}
        return shares | ({"median_delay_s": float(np.median(self.delays_s))} if self.delays_s else {})


def judge(
    frames: NDArray[np.uint8],
    fps: float,
    waveform: NDArray[np.float32] | None,
    rate: int | None,
    stated: Sequence[Stated],
) -> Verdict:
    """Judge one clip.

    Args:
        frames: (t, h, w, 3).
        waveform: (2, samples), or None to judge the picture alone.
        stated: what the prompt says of each shape; only that is judged.
    """
    seen = look(frames, fps)
    verdict = Verdict()
    verdict.right["count"].append(len(seen) == len(stated))
    pairs = _paired(seen, stated)
    for shape, wanted in pairs:
        for name in PICTURE:
            if name in wanted:
                verdict.right[name].append(shape is not None and getattr(shape, name) == wanted[name])
    if waveform is not None and rate is not None:
        _judge_sound(verdict, pairs, fps, waveform, rate)
    return verdict


def _judge_sound(
    verdict: Verdict,
    pairs: Sequence[tuple[Seen | None, Stated]],
    fps: float,
    waveform: NDArray[np.float32],
    rate: int,
) -> None:
    """The pitch against the prompt; the place and the clicks against what the picture shows."""
    heard = sound_judge.notes(waveform, rate, len(pairs))
    for shape, wanted in pairs:
        if "colour" in wanted:
            verdict.right["pitch"].append(wanted["colour"] in heard)
        if shape is not None and shape.colour in heard:
            times = np.asarray((np.arange(len(shape.x)) + 0.5) / fps, dtype=np.float64)
            place = sound_judge.pan(waveform, rate, shape.colour, times)
            verdict.right["panning"].append(bool(np.abs(place - shape.x).mean() < PAN_TOLERANCE))
    contacts = [time for shape, _ in pairs if shape is not None for time in shape.contacts]
    clicks = sound_judge.clicks(waveform, rate)
    for time in contacts:
        delay = min((abs(time - click) for click in clicks), default=float("inf"))
        verdict.delays_s.append(delay)
        verdict.right["click"].append(delay <= LATEST_CLICK_S)


def _paired(seen: Sequence[Seen], stated: Sequence[Stated]) -> list[tuple[Seen | None, Stated]]:
    """Every stated shape with one that is seen: of its colour if there is one, else any that is left."""
    left = list(seen)
    pairs: list[tuple[Seen | None, Stated]] = []
    for wanted in sorted(stated, key=lambda wanted: all(shape.colour != wanted.get("colour") for shape in seen)):
        match = next((shape for shape in left if shape.colour == wanted.get("colour")), left[0] if left else None)
        if match is not None:
            left.remove(match)
        pairs.append((match, wanted))
    return pairs


def validate(world: World, clips: int, part: Part = "unseen", seed: int = 0, device: str = "cpu") -> Verdict:
    """Judge real clips, of which everything is known."""
    total = Verdict()
    for step in range(clips):
        draw = Draw(seed, step, torch.device(device))
        scene = world.scenes(draw, 1, part)
        sound = world.waveform(scene)[0].cpu().numpy()
        total += judge(world.pictures(scene), world.fps, sound, world.sample_rate, states(scene.labels, 0))
    return total


def rounded(accuracy: Mapping[str, float]) -> dict[str, float]:
    """Four digits are enough for a table."""
    return {name: round(value, 4) for name, value in accuracy.items()}


def main() -> None:
    """Judge real clips and print the shares of right answers as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=300, help="real clips to judge (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the clips (%(default)s)")
    args = parser.parse_args()
    print(json.dumps(rounded(validate(World.of(Recipe.read()), args.clips, seed=args.seed).accuracy()), indent=2))


if __name__ == "__main__":
    main()
