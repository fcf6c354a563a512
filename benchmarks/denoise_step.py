"""Seconds of one sampler step with guidance at Nano's size, and the error of its velocity against fp32.

python -m benchmarks.denoise_step --sizes 720x1280x189 480x832x49 --peer compiled
"""

import argparse
import gc
import statistics
import time
from itertools import pairwise, product
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from torch import Tensor

from benchmarks import nano, peer
from benchmarks.measure import median_s, peak_gib, relative_error, report
from cosmos3_models.approximations import EXACTLY, Approximation
from cosmos3_models.checkpoint.configs import SchedulerConfig
from cosmos3_models.sampling.denoise import denoise, draw_noise, velocity_function
from cosmos3_models.sampling.guided_velocity import GuidedVelocity, guide
from cosmos3_models.sampling.plan import passes_by_step
from cosmos3_models.sampling.schedules import make_schedule
from cosmos3_models.sampling.solver import UniPC
from cosmos3_models.shapes import LatentGrid
from cosmos3_models.transformer import attention
from cosmos3_models.transformer.generation_tower import Condition, Streams
from cosmos3_models.transformer.model import Transformer

WARM_UP = 1  # steps
TIMESTEP = 700  # at which velocities are compared
SHIFT = 10.0
SCALE = 6.0
MODES = {
    "exact": EXACTLY,
    "fp8-linears": Approximation(fp8_linears=True),
    "fp8": Approximation(fp8_linears=True, fp8_attention=True),
}


class Case(NamedTuple):
    """One size of video, with its prompts and noise on the device."""

    grid: LatentGrid
    latents: Tensor
    prompts: list[Tensor]
    clean: int = 0  # latent frames, the first ones, that a picture or clip determines

    @classmethod
    def of(cls, size: str, device: str) -> "Case":
        height, width, frames = map(int, size.split("x"))
        grid = LatentGrid.of_video(frames, height, width)
        noise = draw_noise([(1, nano.TRANSFORMER["latent_channel"], grid.frames, grid.height, grid.width)], seed=0)
        generator = torch.Generator().manual_seed(0)
        lengths = (nano.PROMPT_TOKENS, nano.NEGATIVE_TOKENS)
        prompts = [torch.randint(150_000, (1, length), generator=generator).to(device) for length in lengths]
        return cls(grid, noise.video.to(device), prompts)

    @property
    def streams(self) -> Streams:
        frames = torch.arange(self.grid.frames, device=self.latents.device)
        return Streams(self.latents, clean=frames < self.clean if self.clean else None)

    def conditions(self, model: Transformer) -> list[Condition]:
        return model.conditions(self.prompts, self.grid, 24.0, None)


def main() -> None:
    """Run what is asked for, one model after the other, since two would not fit a card."""
    args = _parser().parse_args()
    cases = {size: Case.of(size, args.device) for size in dict.fromkeys([*args.sizes, *args.error_sizes])}
    expected = reference(args, cases)
    rows = ours(args, cases, expected)
    for kind in args.peer:
        rows += theirs(args, cases, expected, compiled=kind == "compiled")
    report(rows, args.device)


def reference(args: argparse.Namespace, cases: dict[str, Case]) -> dict[str, list[Tensor]]:
    """The velocities of both prompts in fp32."""
    if not args.error_sizes:
        return {}
    model = nano.transformer(args.device, torch.float32, args.layers)
    expected = {size: _velocities(model, cases[size]) for size in args.error_sizes}
    _free(model)
    return expected


def ours(args: argparse.Namespace, cases: dict[str, Case], expected: dict[str, list[Tensor]]) -> list[dict[str, Any]]:
    model = nano.transformer(args.device, torch.bfloat16, args.layers)
    rows = []
    names = args.attention or [attention.backend(model.device)]
    for name, mode, (size, case) in product(names, args.modes, cases.items()):
        with patch.object(attention, "backend", return_value=name):
            row: dict[str, Any] = {"model": f"ours, {name}, {mode}", "size": size}
            if size in args.sizes:
                row |= _timed_steps(model, case, args.repeats, MODES[mode])
                for clean in args.clean:
                    row[f"seconds_{clean}_clean"] = _timed_steps(
                        model, case._replace(clean=clean), args.repeats, MODES[mode]
                    )["seconds"]
            if size in expected:
                row |= _errors(_velocities(model, case, MODES[mode]), expected[size])
            rows.append(row)
    _free(model)
    return rows


def theirs(
    args: argparse.Namespace, cases: dict[str, Case], expected: dict[str, list[Tensor]], *, compiled: bool
) -> list[dict[str, Any]]:
    model = peer.transformer(args.device, args.layers, compiled)
    config = nano.transformer_config(args.layers)
    rows = []
    for size, case in cases.items():
        calls = [peer.velocity_call(model, config, ids, case.grid) for ids in case.prompts]
        row: dict[str, Any] = {"model": f"diffusers, {'compiled' if compiled else 'eager'}", "size": size}
        if size in args.sizes:

            def step(case: Case = case, calls: list[Any] = calls) -> Tensor:
                guided = guide([velocity(case.latents, TIMESTEP) for velocity in calls], SCALE)
                return UniPC(_schedule(2).sigmas, case.latents).step(guided)

            row["seconds"] = median_s(step, args.repeats, WARM_UP)
            row["peak_gib"] = peak_gib(step)
        if size in expected:
            row |= _errors([velocity(case.latents, TIMESTEP).cpu() for velocity in calls], expected[size])
        rows.append(row)
    _free(model)
    return rows


def take_steps(
    model: Transformer, case: Case, conditions: list[Condition], steps: int, mode: Approximation = EXACTLY
) -> list[float]:
    """The seconds of each step of the real loop."""
    velocity = velocity_function(model, conditions, mode)
    ends = [time.perf_counter()]
    guided = GuidedVelocity(SCALE, passes_by_step(steps, len(conditions)))
    denoise(velocity, case.streams, _schedule(steps), guided, lambda *_: ends.append(time.perf_counter()), bool)
    return [after - before for before, after in pairwise(ends)]


def _timed_steps(model: Transformer, case: Case, repeats: int, mode: Approximation) -> dict[str, float]:
    conditions_s = median_s(lambda: case.conditions(model), repeats)
    conditions = case.conditions(model)
    take_steps(model, case, conditions, WARM_UP, mode)
    seconds: list[float] = []
    peak = peak_gib(lambda: seconds.extend(take_steps(model, case, conditions, repeats, mode)))
    return {"seconds": statistics.median(seconds), "text_s": conditions_s, "peak_gib": peak}


def _velocities(model: Transformer, case: Case, mode: Approximation = EXACTLY) -> list[Tensor]:
    conditions = case.conditions(model)
    velocity = velocity_function(model, conditions, mode)
    return [streams.video.cpu() for streams in velocity(Streams(case.latents), TIMESTEP, len(conditions))]


def _errors(got: list[Tensor], expected: list[Tensor]) -> dict[str, float]:
    names = ("error_prompt", "error_negative")
    return {name: relative_error(a, b) for name, a, b in zip(names, got, expected, strict=True)}


def _schedule(steps: int) -> Any:
    return make_schedule("flow", steps, SHIFT, SchedulerConfig.model_validate(nano.SCHEDULER))


def _free(model: torch.nn.Module) -> None:
    model.to("meta")
    gc.collect()
    torch.cuda.empty_cache()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="*", default=["720x1280x189", "480x832x49"], help="height x width x frames")
    parser.add_argument("--error-sizes", nargs="*", default=["480x832x49"], help="compared with fp32 (%(default)s)")
    parser.add_argument(
        "--peer", nargs="*", default=[], choices=["eager", "compiled"], help="diffusers in the same run"
    )
    parser.add_argument(
        "--attention", nargs="*", default=[], choices=attention.IMPLEMENTATIONS, help="in turn, in place of the default"
    )
    parser.add_argument("--modes", nargs="*", default=["exact"], choices=MODES, help="of ours (%(default)s)")
    parser.add_argument(
        "--clean", nargs="*", type=int, default=[], help="numbers of clean latent frames to time too, such as 1 2"
    )
    parser.add_argument("--layers", type=int, default=nano.TRANSFORMER["num_hidden_layers"], help="fewer for a trial")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cuda")
    return parser


if __name__ == "__main__":
    main()
