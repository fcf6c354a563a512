"""How far the latents of reused velocities are from those of all steps, beside fewer steps of the same cost.

OMP_NUM_THREADS=1 python -m benchmarks.reuse --checkpoint demo --device cpu --prompts 12

Cost is counted in forward passes, so it is the same on every machine. Videos have sound, and nothing is decoded.
"""

import argparse
import statistics
from collections.abc import Sequence

from benchmarks.markdown import markdown_table
from benchmarks.measure import relative_error
from benchmarks.quality_cases import Case, Prompt, cases, draw_prompts, pair, params_of
from cosmos3_models import Cosmos3Pipeline
from cosmos3_models.params import GenerationDefaults
from cosmos3_models.sampling.plan import passes_by_step
from cosmos3_models.transformer.generation_tower import Streams


def rows(pipeline: Cosmos3Pipeline, chosen: Sequence[Case], prompts: Sequence[Prompt]) -> list[dict[str, str]]:
    """A row for each case; the first case is the one to compare with."""
    exact = [_latents(pipeline, chosen[0], prompt, seed) for seed, prompt in enumerate(prompts)]
    return [_row(pipeline, case, prompts, exact) for case in chosen[1:]]


def _row(pipeline: Cosmos3Pipeline, case: Case, prompts: Sequence[Prompt], exact: Sequence[Streams]) -> dict[str, str]:
    row = {"case": case.name, "passes": str(_passes(case))}
    made = [_latents(pipeline, case, prompt, seed).present for seed, prompt in enumerate(prompts)]
    streams = zip(zip(*made, strict=True), zip(*(one.present for one in exact), strict=True), strict=True)
    for name, (ours, theirs) in zip(("video", "sound"), streams, strict=True):
        off = [relative_error(x, y) for x, y in zip(ours, theirs, strict=True)]
        row[f"{name} off"] = f"{statistics.mean(off):.3f}"
        row[f"{name} off, median"] = f"{statistics.median(off):.3f}"
    return row


def _passes(case: Case) -> int:
    settings = case.settings
    prompts = 1 if settings["guidance_scale"] == 1 else 2
    reuse = settings["velocity_reuse"], settings["guidance_reuse"]
    return sum(passes_by_step(settings["num_inference_steps"], prompts, *reuse))


def _latents(pipeline: Cosmos3Pipeline, case: Case, prompt: Prompt, seed: int) -> Streams:
    params = params_of(pipeline.checkpoint.defaults, case, prompt, seed)
    return pipeline.denoiser(pipeline.prompt_encoder.encode(params), params)


def _cases(defaults: GenerationDefaults, args: argparse.Namespace) -> list[Case]:
    many = defaults.model_copy(update={"num_inference_steps": args.all_steps})
    return cases(many, steps=args.steps, reuse=args.reuse)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--checkpoint", default="demo")
    add("--device", default="auto", choices=("auto", "cpu", "cuda"))
    add("--prompts", type=int, default=12)
    add("--all-steps", type=int, default=35, help="of what the others are compared with (%(default)s)")
    add("--steps", nargs="*", type=int, default=(24, 20, 17, 15, 12), help="numbers of steps (24 20 17 15 12)")
    reuse = ((2, 0), (3, 0), (5, 0), (5, 2))
    add("--reuse", nargs="*", type=pair, default=reuse, help="of velocity, of guidance (2,0 3,0 5,0 5,2)")
    args = parser.parse_args(arguments)
    pipeline = Cosmos3Pipeline.from_pretrained(args.checkpoint, args.device)
    prompts = draw_prompts("unseen", args.prompts)
    print(markdown_table(rows(pipeline, _cases(pipeline.checkpoint.defaults, args), prompts)))


if __name__ == "__main__":
    main()
