"""How well the demo goes on from pictures and clips that it is given, and makes images, by the judge.

python -m benchmarks.reference_quality --checkpoint demo --prompts 200 --processes 8 --out references.json

Every prompt is of a scene that training never saw. The same scene is asked for by text alone, with its first frame as
a picture, with its first five frames as a clip, with its last five frames as a clip, and as an image.
"""

import argparse
import json
import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import cache, partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.judge import judge
from benchmarks.markdown import markdown_table
from benchmarks.picture_judge import Floats, look
from cosmos3_models import CheckpointError, Cosmos3Pipeline
from cosmos3_models.checkpoint.loading import resolve_device
from cosmos3_models.media.output_file import check_output_file
from training.captions import states, write_caption
from training.labels import COLOURS, Labels, draw_labels
from training.recipe import Recipe
from training.scene import Scene
from training.world import Draw, World

Frames = NDArray[np.uint8]

CPU = torch.device("cpu")
STEPS = 8  # of a shape, after what is given, whose direction is compared
SAME_WAY = 0.7  # of the cosine between the steps of a shape and those that it would really take
MOVES = 2.0  # pixels in ``STEPS`` steps; the direction of what moves less is not compared


class Case(NamedTuple):
    """One way to ask for a scene."""

    name: str
    given: int = 0  # frames
    late: bool = False  # they are the scene's last, not its first
    image: bool = False


CASES = (
    Case("text"),
    Case("picture", given=1),
    Case("clip", given=5),
    Case("last frames of a clip", given=5, late=True),
    Case("image", image=True),
)


@dataclass
class Answers:
    """What was found of one video or, added up, of many."""

    right: dict[str, list[bool]] = field(default_factory=lambda: defaultdict(list))
    measured: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))

    def add(self, other: "Answers") -> None:
        """Take in what was found of another video."""
        for name, answers in other.right.items():
            self.right[name] += answers
        for name, values in other.measured.items():
            self.measured[name] += values

    def row(self) -> dict[str, float]:
        """Shares of right answers and medians of what was measured."""
        shares = {name: round(float(np.mean(answers)), 4) for name, answers in self.right.items()}
        return shares | {name: round(float(np.median(values)), 3) for name, values in self.measured.items()}


class Maker:
    """A pipeline that has a video encoder.

    Raises:
        CheckpointError: the checkpoint has none.
    """

    def __init__(self, checkpoint: str, device: str) -> None:
        self.pipeline = Cosmos3Pipeline.from_pretrained(checkpoint, device)
        if self.pipeline.video_encoder is None:
            raise CheckpointError(self.pipeline.checkpoint.folder, "it has no video encoder")
        self.encoder = self.pipeline.video_encoder

    def make(self, prompt: str, seed: int, given: Frames, num_frames: int) -> tuple[Frames, Frames]:
        """A video that begins with the ``given`` frames, and those frames as they come back from the decoder."""
        params = self.pipeline.checkpoint.defaults.params(prompt=prompt, seed=seed, num_frames=num_frames)
        if len(given) == 0:
            return self.pipeline(params).frames, given
        reference: dict[str, Any] = {"image": given[0]} if len(given) == 1 else {"video": given}
        lost = list(self.pipeline.video_decoder.frames(self.encoder([given])))
        return self.pipeline(params, **reference).frames, np.concatenate(lost)


def answers(maker: Maker, case: Case, index: int) -> Answers:
    """Ask for one scene in one way."""
    random = np.random.default_rng([0, index])
    labels = draw_labels(random, 1, "unseen")
    prompt = write_caption(labels, 0, random, full=True, still=case.image)
    recipe = Recipe.of(_recipe_data(maker))
    world, draw = World.of(recipe), Draw(0, index, CPU)
    scene = begun(world.scenes_of(labels, draw), world, case)
    real = world.pictures(scene)
    made, lost = maker.make(prompt, index, real[: case.given], 1 if case.image else world.num_frames)
    found = Answers()
    if not case.late:  # there a shape may leave the picture
        _describe(found, made, world, labels, case)
    if case.given:
        given = real[: case.given]
        found.measured["first_frame_psnr_db"].append(psnr(made[0], given[0]))
        found.measured["decoder_limit_db"].append(psnr(lost[0], given[0]))
    if case.given > 1:
        _compare_paths(found, made, scene, world, case.given)
    return found


def begun(scene: Scene, world: World, case: Case) -> Scene:
    """The scene from where the case has it begin."""
    return scene.later(torch.tensor([(world.num_frames - case.given) / world.fps])) if case.late else scene


def psnr(got: Frames, expected: Frames) -> float:
    """Decibels, 99 at most."""
    square = float(np.square(got / 255 - expected / 255).mean())
    return -10 * math.log10(max(square, 10**-9.9))


def _describe(found: Answers, made: Frames, world: World, labels: Labels, case: Case) -> None:
    stated = states(labels, 0)
    if case.image:
        stated = [{name: of[name] for name in ("kind", "colour", "size")} for of in stated]
    found.right |= judge(made, world.fps, None, None, stated).right


def _compare_paths(found: Answers, made: Frames, scene: Scene, world: World, given: int) -> None:
    """Whether shapes go on where, and which way, they would have gone on."""
    x, y, _ = scene.track(torch.arange(len(made)) / world.fps)
    seen = {shape.colour: np.stack([shape.x, shape.y]) for shape in look(made, world.fps)}
    window = slice(given - 1, given + STEPS)
    for shape in range(scene.labels.shapes(0)):
        true = np.stack([x[0, shape].numpy(), y[0, shape].numpy()])
        edge = float(scene.radius[0, shape])
        if true[:, window].min() < edge or true[:, window].max() > 1 - edge:
            continue  # it leaves the picture
        path = seen.get(COLOURS[scene.labels.colour[0, shape]])
        if path is None:
            found.right["goes on"].append(False)
            continue
        steps, expected = (np.diff(places[:, window]) * world.side for places in (path, true))
        found.measured["jump_px"].append(float(np.linalg.norm(steps[:, 0] - expected[:, 0])))
        if np.linalg.norm(expected, axis=0).sum() > MOVES:
            found.right["goes on"].append(_cosine(steps, expected) > SAME_WAY)


def _cosine(one: Floats, other: Floats) -> float:
    return float((one * other).sum() / max(np.linalg.norm(one) * np.linalg.norm(other), 1e-9))


def _recipe_data(maker: Maker) -> dict[str, Any]:
    """The recipe with the checkpoint's own size and length of clips."""
    defaults = maker.pipeline.checkpoint.defaults.params(prompt="-")
    data = Recipe.read().data
    size = {name: getattr(defaults, name) for name in ("num_frames", "height", "width", "fps")}
    return data | {"generation": data["generation"] | size}


@cache
def _maker(checkpoint: str, device: str) -> Maker:
    return Maker(checkpoint, device)


def _answer(source: tuple[str, str], case: Case, index: int) -> Answers:
    return answers(_maker(*source), case, index)


def measure(source: tuple[str, str], chosen: Sequence[Case], prompts: int, count: int) -> Iterator[dict[str, Any]]:
    """A row for each case; ``count`` processes make and judge, each with a model."""
    threads = max(1, torch.get_num_threads() // count)
    with ProcessPoolExecutor(count, get_context("spawn"), torch.set_num_threads, (threads,)) as pool:
        for case in chosen:
            total = Answers()
            for found in pool.map(partial(_answer, source, case), range(prompts)):
                total.add(found)
            yield {"case": case.name} | total.row()


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as Markdown: percent, decibels and pixels."""
    return markdown_table([{name: _cell(name, value) for name, value in row.items()} for row in rows])


def _cell(name: str, value: Any) -> str:
    if name == "case":
        return str(value)
    return f"{value:.1f}" if name.endswith(("_db", "_px")) else f"{100 * value:.1f}"


def main(arguments: list[str] | None = None) -> None:
    """Measure every case, print a table and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--checkpoint", default="demo", help="folder of a model of this world, or demo (%(default)s)")
    add("--device", default="auto", help="torch device; a GPU computes in bf16, the CPU in fp32 (%(default)s)")
    add("--prompts", type=int, default=200, help="scenes to ask for (%(default)s)")
    names = [case.name for case in CASES]
    add("--cases", nargs="+", choices=names, default=names, help="ways to ask for them (all)")
    add("--processes", type=int, default=2, help="that make and judge, each with a model (%(default)s)")
    add("--out", type=Path, default=None, help="JSON file for the results, whole after every case")
    args = parser.parse_args(arguments)
    if args.out:
        check_output_file(args.out)
    source = args.checkpoint, str(resolve_device(args.device)[0])
    rows = []
    for row in measure(source, [case for case in CASES if case.name in args.cases], args.prompts, args.processes):
        rows.append(row)
        print(json.dumps(row), flush=True)
        if args.out:
            args.out.write_text(json.dumps({"prompts": args.prompts, "rows": rows}, indent=2) + "\n")
    print(table(rows))


if __name__ == "__main__":
    main()
