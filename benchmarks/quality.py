"""How often the demo makes what its prompt says, by the judge: unseen prompts and combinations never trained on.

python -m benchmarks.quality --checkpoint demo --prompts 200 --out quality.json
"""

import argparse
import itertools
import json
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, get_args

import numpy as np

from benchmarks.judge import Verdict, judge, rounded
from cosmos3_models import Cosmos3Pipeline, GenerationParams, GenerationResult
from cosmos3_models.params import GenerationDefaults, SigmaSchedule
from training.captions import Stated, state, write_caption
from training.labels import Part, draw_labels

PARTS: tuple[Part, ...] = ("unseen", "held_out")


@dataclass(frozen=True)
class Case:
    """One way to sample."""

    part: Part
    guidance: float
    schedule: SigmaSchedule
    steps: int


@dataclass(frozen=True)
class Prompt:
    """A caption that states every attribute, and what it states."""

    text: str
    stated: list[Stated]


def draw_prompts(part: Part, count: int, seed: int = 0) -> list[Prompt]:
    """Prompts of one part of the world; the first ones are the same for any ``count``."""
    random = [np.random.default_rng([seed, index]) for index in range(count)]
    labels = [draw_labels(generator, 1, part) for generator in random]
    return [
        Prompt(
            write_caption(scene, 0, generator, full=True),
            [state(scene, 0, shape) for shape in range(scene.shapes(0))],
        )
        for scene, generator in zip(labels, random, strict=True)
    ]


def measure(pipeline: Cosmos3Pipeline, case: Case, prompts: Sequence[Prompt], judges: Executor) -> Any:
    """Accuracy by attribute and seconds a video, of one case."""
    verdicts: list[Future[Verdict]] = []
    start = time.perf_counter()
    for seed, prompt in enumerate(prompts):
        made = pipeline(params_of(pipeline.checkpoint.defaults, case, prompt, seed))
        verdicts.append(judges.submit(_judge, made, prompt.stated))
    seconds = (time.perf_counter() - start) / len(prompts)
    total = Verdict()
    for verdict in verdicts:
        total += verdict.result()
    return asdict(case) | {"prompts": len(prompts), "seconds": round(seconds, 3)} | rounded(total.accuracy())


def params_of(defaults: GenerationDefaults, case: Case, prompt: Prompt, seed: int) -> GenerationParams:
    """The request for one prompt."""
    return defaults.params(
        prompt=prompt.text,
        generate_sound=True,
        seed=seed,
        guidance_scale=case.guidance,
        sigma_schedule=case.schedule,
        num_inference_steps=case.steps,
    )


def cases(args: argparse.Namespace, defaults: GenerationParams) -> Iterator[Case]:
    """Each part with the defaults, then with one of them changed at a time."""
    base = (defaults.guidance_scale, defaults.sigma_schedule, defaults.num_inference_steps)
    changed = [
        base,
        *((guidance, *base[1:]) for guidance in args.guidance),
        *((base[0], schedule, base[2]) for schedule in args.schedules),
        *((*base[:2], steps) for steps in args.steps),
    ]
    for part, case in itertools.product(args.parts, dict.fromkeys(changed)):
        yield Case(part, *case)


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    lines = [names, ["---"] * len(names), *([str(row.get(name, "")) for name in names] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _judge(made: GenerationResult, stated: Sequence[Stated]) -> Verdict:
    return judge(made.frames, made.fps, made.waveform, made.sample_rate, stated)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--checkpoint", default="demo", help="folder of a model of this world, or demo (%(default)s)")
    add("--device", default="auto", help="torch device (%(default)s)")
    add("--prompts", type=int, default=200, help="of each part (%(default)s)")
    add("--parts", nargs="+", choices=get_args(Part), default=PARTS, help="of the world (unseen held_out)")
    add("--guidance", nargs="*", type=float, default=(1, 3, 6), help="scales to compare (1 3 6)")
    add("--schedules", nargs="*", choices=get_args(SigmaSchedule), default=(), help="to compare (none)")
    add("--steps", nargs="*", type=int, default=(), help="numbers of steps to compare (none)")
    add("--workers", type=int, default=2, help="processes that judge (%(default)s)")
    add("--out", type=Path, default=None, help="JSON file for the results")
    return parser


def main() -> None:
    """Measure every case, print a table and write the results."""
    args = _parser().parse_args()
    pipeline = Cosmos3Pipeline.from_pretrained(args.checkpoint, args.device)
    prompts = {part: draw_prompts(part, args.prompts) for part in args.parts}
    rows = []
    with ProcessPoolExecutor(args.workers, mp_context=get_context("spawn")) as judges:
        for case in cases(args, pipeline.checkpoint.defaults.params(prompt="-")):
            rows.append(measure(pipeline, case, prompts[case.part], judges))
            print(json.dumps(rows[-1]), flush=True)
            if args.out:
                args.out.write_text(json.dumps(rows, indent=2) + "\n")
    print(table(rows))


if __name__ == "__main__":
    main()
