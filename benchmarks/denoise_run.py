"""Seconds of a whole denoise at Nano's size, exact and approximated, and how far the approximated latents are off.

With random weights the distance says how an error grows, not how a video looks.

python -m benchmarks.denoise_run --size 480x832x49 --velocity-reuse 0 2 3 --guidance-reuse 0 2 --fp8
"""

import argparse
import itertools
import time
from typing import Any

import torch
from torch import Tensor

from benchmarks import nano
from benchmarks.denoise_step import SCALE, SHIFT, Case
from benchmarks.measure import relative_error, report, synchronize
from cosmos3_models.approximations import Approximation
from cosmos3_models.checkpoint.configs import SchedulerConfig
from cosmos3_models.sampling.denoise import denoise, velocity_function
from cosmos3_models.sampling.guided_velocity import GuidedVelocity
from cosmos3_models.sampling.plan import passes_by_step
from cosmos3_models.sampling.schedules import make_schedule
from cosmos3_models.transformer.generation_tower import Streams
from cosmos3_models.transformer.model import Transformer


def main() -> None:
    args = _parser().parse_args()
    case = Case.of(args.size, args.device)
    model = nano.transformer(args.device, torch.bfloat16, args.layers)
    exact = None if args.seconds_only else _run(model, case, args.steps, Approximation())[0]
    rows: list[dict[str, Any]] = []
    in_fp8 = [False, True] if args.fp8 else [False]
    for fp8, velocity, guidance in itertools.product(in_fp8, args.velocity_reuse, args.guidance_reuse):
        reuse = {"velocity_reuse": velocity, "guidance_reuse": guidance}
        mode = Approximation(fp8_linears=fp8, fp8_attention=fp8, **reuse)
        _run(model, case, 1, mode)
        latents, seconds = _run(model, case, args.steps, mode)
        row = {"mode": mode.label, "size": args.size, "steps": args.steps, "seconds": seconds}
        rows.append(row if exact is None else row | {"off": relative_error(latents, exact)})
    report(rows, args.device)


def _run(model: Transformer, case: Case, steps: int, mode: Approximation) -> tuple[Tensor, float]:
    """The latents, and the seconds from token ids to them."""
    schedule = make_schedule("flow", steps, SHIFT, SchedulerConfig.model_validate(nano.SCHEDULER))
    synchronize()
    start = time.perf_counter()
    conditions = case.conditions(model)
    velocity = velocity_function(model, conditions, mode)
    plan = passes_by_step(steps, len(conditions), mode.velocity_reuse, mode.guidance_reuse)
    guided = GuidedVelocity(SCALE, plan)
    latents = denoise(velocity, Streams(case.latents), schedule, guided, lambda *_: None, bool).video
    return latents, time.perf_counter() - start


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="720x1280x189", help="height x width x frames (%(default)s)")
    parser.add_argument("--steps", type=int, default=35)
    for name in ("velocity", "guidance"):
        parser.add_argument(f"--{name}-reuse", nargs="*", type=int, default=[0], help="values of the field; 0: exact")
    parser.add_argument("--fp8", action="store_true", help="with fp8 linears and fp8 attention, and without")
    parser.add_argument("--seconds-only", action="store_true", help="no exact run to compare with")
    parser.add_argument("--layers", type=int, default=nano.TRANSFORMER["num_hidden_layers"], help="fewer for a trial")
    parser.add_argument("--device", default="cuda")
    return parser


if __name__ == "__main__":
    main()
