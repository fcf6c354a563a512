"""How often the demo makes what its prompt says, by the judge, and what each way to sample faster costs.

python -m benchmarks.quality --checkpoint demo --prompts 200 --processes 8 --fp8 --out quality.json

Unseen prompts and combinations never trained on, first with the exact defaults, then with one thing changed at a time.
A case whose accuracy falls more than a point below that of the defaults is marked. Seconds are measured first, with
nothing else running.
"""

import argparse
import json
import statistics
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.judge import Verdict, judge
from benchmarks.markdown import markdown_table
from benchmarks.measure import environment, relative_error
from benchmarks.quality_cases import BOTH_PARTS, Case, Prompt, cases, draw_prompts, pair, params_of
from cosmos3_models import Cosmos3Pipeline, GenerationParams, InvalidInput
from cosmos3_models.checkpoint.folder import Checkpoint
from cosmos3_models.checkpoint.loading import resolve_device
from cosmos3_models.media.output_file import check_output_file
from cosmos3_models.params import SigmaSchedule
from training.captions import Stated
from training.labels import Part

PARTS: tuple[Part, ...] = ("unseen", "held_out")
ALLOWED_FALL = 0.01  # of the mean accuracy below that of the defaults
DELAY = "median_delay_s"


@dataclass(frozen=True)
class Clip:
    """What is kept of a video: the judgement and its clean latents (1, c, t, h, w)."""

    verdict: Verdict
    latents: NDArray[np.float32]


@dataclass(frozen=True)
class Source:
    """What a process needs to make videos of its own. Each loads the model once."""

    checkpoint: str
    device: str

    def make(self, params: GenerationParams, stated: Sequence[Stated]) -> Clip:
        """Make one video and judge it."""
        made = _pipeline(self)(params)
        verdict = judge(made.frames, made.fps, made.waveform, made.sample_rate, stated)
        return Clip(verdict, made.video_latents.float().numpy())


@cache
def _pipeline(source: Source) -> Cosmos3Pipeline:
    return Cosmos3Pipeline.from_pretrained(source.checkpoint, source.device)


def _start(source: Source, threads: int) -> None:
    torch.set_num_threads(threads)
    _pipeline(source)


@contextmanager
def processes(source: Source, count: int) -> Iterator[Executor]:
    """Processes that share the machine's cores evenly, each with a model; what waits at the end is dropped."""
    threads = max(1, torch.get_num_threads() // count)
    pool = ProcessPoolExecutor(count, get_context("spawn"), initializer=_start, initargs=(source, threads))
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def seconds(source: Source, chosen: Iterable[Case], prompt: Prompt, repeats: int) -> dict[str, dict[str, Any]]:
    """Median seconds of denoise and of the whole video by case, or why it was refused.

    The cases take turns, so that what slows the machine for a while slows all of them.
    """
    pipeline = Cosmos3Pipeline.from_pretrained(source.checkpoint, source.device)
    requests = {case.name: params_of(pipeline.checkpoint.defaults, case, prompt, seed=0) for case in chosen}
    runs: dict[str, list[dict[str, float]]] = defaultdict(list)
    found: dict[str, dict[str, Any]] = {}
    for _ in range(1 + repeats):
        for name in [name for name in requests if name not in found]:
            try:
                timings = pipeline(requests[name]).timings
            except InvalidInput as refusal:
                found[name] = {"refused": str(refusal)}
            else:
                runs[name].append(timings)
    for name, (_, *timed) in runs.items():
        denoise, video = ([run["denoise"] for run in timed], [sum(run.values()) for run in timed])
        found[name] = {"denoise_s": statistics.median(denoise), "video_s": statistics.median(video)}
    for name, row in found.items():
        print(json.dumps({"case": name} | row), flush=True)
    return found


def compare(clips: Sequence[Clip], default: Sequence[Clip]) -> dict[str, Any]:
    """How far a case is from the defaults on the same prompts and noise.

    Returns:
        ``accuracy`` by attribute and its ``mean``; ``fall``, how far that is below the mean of the defaults, with the
        standard error of such a difference over prompts; ``worse`` where it fell too far; ``latent_error``, the mean
        relative distance of the video latents.
    """
    accuracy, expected = (_accuracy(made) for made in (clips, default))
    errors = [_distance(after, before) for before, after in zip(default, clips, strict=True)]
    fall = _mean(expected) - _mean(accuracy)
    return {
        "mean": _mean(accuracy),
        "fall": fall,
        "fall_error": float(np.linalg.norm(_raised(default, expected) - _raised(clips, accuracy))),
        "worse": fall > ALLOWED_FALL,
        "latent_error": statistics.mean(errors),
        "accuracy": accuracy,
    }


def _accuracy(clips: Sequence[Clip]) -> dict[str, float]:
    total = Verdict()
    for clip in clips:
        total += clip.verdict
    return total.accuracy()


def _mean(accuracy: dict[str, float]) -> float:
    return statistics.mean(_shares(accuracy).values())


def _shares(accuracy: dict[str, float]) -> dict[str, float]:
    return {name: share for name, share in accuracy.items() if name != DELAY}


def _raised(clips: Sequence[Clip], accuracy: dict[str, float]) -> NDArray[np.float64]:
    """(clips,): by how much each of them raises the mean over attributes, to first order; the delta method's terms.

    An attribute of few clips, such as the click, weighs much in them.
    """
    shares = _shares(accuracy)
    raised = np.zeros(len(clips))
    for name, share in shares.items():
        answers = [clip.verdict.right.get(name, []) for clip in clips]
        surplus = np.array([sum(found) - share * len(found) for found in answers])
        raised += surplus / sum(map(len, answers))
    return raised / len(shares)


def _distance(clip: Clip, default: Clip) -> float:
    return relative_error(torch.from_numpy(clip.latents), torch.from_numpy(default.latents))


@dataclass
class Results:
    """The rows so far, in a file that is whole after each of them."""

    head: dict[str, Any]
    path: Path | None
    rows: list[dict[str, Any]]

    def add(self, row: dict[str, Any]) -> None:
        """Keep, print and write a row."""
        self.rows.append(row)
        print(json.dumps(row), flush=True)
        if self.path:
            draft = self.path.with_suffix(".part")
            draft.write_text(json.dumps(self.head | {"rows": self.rows}, indent=2) + "\n")
            draft.replace(self.path)


def measure(
    source: Source,
    part: Part,
    chosen: Sequence[Case],
    prompts: Sequence[Prompt],
    workers: Executor,
    times: dict[str, dict[str, Any]],
    results: Results,
) -> None:
    """Add a row for each case of one part of the world; the first case is the one to compare with."""
    defaults = Checkpoint.open(source.checkpoint).defaults
    making: dict[str, list[Future[Clip]]] = {
        case.name: [
            workers.submit(source.make, params_of(defaults, case, prompt, seed), prompt.stated)
            for seed, prompt in enumerate(prompts)
        ]
        for case in chosen
        if "refused" not in times[case.name]
    }
    default: list[Clip] = []
    for case in chosen:
        row = {"part": part, "group": case.group, "case": case.name, "settings": case.settings} | times[case.name]
        if case.name in making:
            clips = [clip.result() for clip in making.pop(case.name)]
            default = default or clips
            row |= compare(clips, default)
        results.add(row)


def table(rows: Iterable[dict[str, Any]]) -> str:
    """Markdown; shares in percent."""
    return markdown_table([_cells(row) for row in rows])


def _cells(row: dict[str, Any]) -> dict[str, str]:
    known = {"part": row["part"], "case": row["case"]}
    known |= {name: f"{row[name]:.3f}" for name in ("denoise_s", "video_s") if name in row}
    if "refused" in row:
        return known | {"verdict": "refused"}
    change = f"{0 - 100 * row['fall']:+.1f} ± {100 * row['fall_error']:.1f}"
    known |= {"verdict": "worse" if row["worse"] else "", "latent_error": f"{row['latent_error']:.3f}"}
    known |= {"mean %": f"{100 * row['mean']:.1f}", "change": change}
    accuracy = row["accuracy"]  # a share that was rounded before would be rounded twice
    shares = {name: f"{100 * share:.1f}" for name, share in _shares(accuracy).items()}
    return known | shares | ({DELAY: f"{accuracy[DELAY]:.4f}"} if DELAY in accuracy else {})


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--checkpoint", default="demo", help="folder of a model of this world, or demo (%(default)s)")
    add("--device", default="auto", help="torch device; a GPU computes in bf16, the CPU in fp32 (%(default)s)")
    add("--prompts", type=int, default=200, help="of each part (%(default)s)")
    add("--parts", nargs="+", choices=get_args(Part), default=PARTS, help="of the world (unseen held_out)")
    add("--held-out-all", action="store_true", help="every case on every part, not only defaults and guidance")
    add("--guidance", nargs="*", type=float, default=(1, 3, 6), help="scales to compare (1 3 6)")
    schedules = ("flow", "karras", "phyai")
    add("--schedules", nargs="*", choices=get_args(SigmaSchedule), default=schedules, help="(flow karras phyai)")
    add("--steps", nargs="*", type=int, default=(4, 8, 12, 24), help="numbers of steps (4 8 12 24)")
    reuse = ((2, 0), (3, 0), (5, 0), (0, 2), (5, 2))
    add("--reuse", nargs="*", type=pair, default=reuse, help="of velocity, of guidance (2,0 3,0 5,0 0,2 5,2)")
    add("--fp8", action="store_true", help="linears, attention, both, and both with the fast profile")
    add("--processes", type=int, default=2, help="that make and judge, each with a model (%(default)s)")
    add("--repeats", type=int, default=3, help="runs of a case whose median is its time (%(default)s)")
    add("--out", type=Path, default=None, help="JSON file for the results, whole after every case")
    return parser


def main(arguments: list[str] | None = None) -> None:
    """Measure every case, print a table and write the results."""
    args = _parser().parse_args(arguments)
    if args.out:
        check_output_file(args.out)
    source = Source(args.checkpoint, str(resolve_device(args.device)[0]))
    checkpoint = Checkpoint.open(args.checkpoint)
    chosen = cases(
        checkpoint.defaults,
        guidance=args.guidance,
        schedules=args.schedules,
        steps=args.steps,
        reuse=args.reuse,
        fp8=args.fp8,
    )
    head = environment(source.device) | {"model": checkpoint.name, "prompts": args.prompts}
    results = Results(head, args.out, [])
    prompts = {part: draw_prompts(part, args.prompts) for part in args.parts}
    times = seconds(source, chosen, prompts[args.parts[0]][0], args.repeats)
    with processes(source, args.processes) as workers:
        for part in args.parts:
            everything = args.held_out_all or part == args.parts[0]
            of_part = [case for case in chosen if everything or case.group in BOTH_PARTS]
            measure(source, part, of_part, prompts[part], workers, times, results)
    print(table(results.rows))


if __name__ == "__main__":
    main()
