"""Make one video from the command line: ``python -m cosmos3_models --checkpoint DIR --prompt ... --out x.mp4``."""

import argparse
import sys
import time
from pathlib import Path
from typing import Any, Never

import torch
from tqdm import tqdm

from cosmos3_models.errors import CheckpointError, InvalidInput
from cosmos3_models.media.mp4 import encode_video
from cosmos3_models.media.output_file import check_output_file
from cosmos3_models.params import GenerationParams
from cosmos3_models.pipeline import Cosmos3Pipeline

# inference is denoise and both decodes together; per step is inference over the sampler's steps.
TABLE = (
    "model_load",
    "preprocess",
    "denoise",
    "video_decode",
    "sound_decode",
    "inference",
    "to_cpu",
    "encode",
    "per step",
    "total",
)

PARAMS = {
    "negative_prompt": str,
    "num_frames": int,
    "height": int,
    "width": int,
    "fps": float,
    "num_inference_steps": int,
    "guidance_scale": float,
    "flow_shift": float,
    "sigma_schedule": str,
    "seed": int,
    "step_cache": float,
}


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    args = _parser().parse_args(arguments)
    given = {name: value for name in PARAMS if (value := getattr(args, name)) is not None}
    try:
        _generate(args, given | {"prompt": args.prompt, "generate_sound": args.sound})
    except (CheckpointError, InvalidInput) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _generate(args: argparse.Namespace, given: dict[str, Any]) -> None:
    timings = {}
    start = time.perf_counter()
    GenerationParams(**given)  # a mistake is reported before minutes of loading
    check_output_file(args.out)
    dtype = getattr(torch, args.dtype) if args.dtype else None
    pipeline = Cosmos3Pipeline.from_pretrained(args.checkpoint, args.device, dtype)
    params = pipeline.checkpoint.defaults.params(**given)
    timings["model_load"] = time.perf_counter() - start
    with tqdm(total=params.num_inference_steps, unit="step", desc="denoise") as bar:
        result = pipeline(params, on_step=lambda done, _: _show(bar, done))
    encode_start = time.perf_counter()
    args.out.write_bytes(encode_video(result.frames, result.waveform, result.fps, result.sample_rate))
    timings |= result.timings | {"encode": time.perf_counter() - encode_start}
    timings["total"] = time.perf_counter() - start
    timings["inference"] = sum(timings[stage] for stage in ("denoise", "video_decode", "sound_decode"))
    timings["per step"] = timings["inference"] / params.num_inference_steps
    _print_table(timings)
    print(f"{args.out}: {params.width}x{params.height}, {params.num_frames} frames, {params.fps:g} fps")


def _show(bar: "tqdm[Never]", done: int) -> None:
    bar.update(done - bar.n)


def _print_table(timings: dict[str, float]) -> None:
    for stage in TABLE:
        print(f"{stage:<14}{timings[stage]:9.3f} s")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m cosmos3_models", description=__doc__)
    parser.add_argument("--checkpoint", default="demo", help="folder with Cosmos3 weights, or demo (%(default)s)")
    parser.add_argument("--prompt", required=True)
    parser.add_argument("--sound", action="store_true", help="make a sound track as well")
    parser.add_argument("-o", "--out", type=Path, required=True, help="the mp4 to write, in a folder that exists")
    parser.add_argument("--device", default="auto", help="a torch device, or auto (%(default)s)")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], help="of the weights; bfloat16 on a GPU")
    for name, kind in PARAMS.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind)
    return parser


if __name__ == "__main__":
    sys.exit(main())
