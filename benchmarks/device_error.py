"""How far a device and dtype are from fp32 on the CPU, on the same checkpoint, prompt and noise.

python -m benchmarks.device_error --checkpoint demo --device cuda
"""

import argparse
import json
from typing import Any

import torch

from cosmos3_models import Cosmos3Pipeline, GenerationResult


def main() -> None:
    """Print one line of JSON per dtype: relative errors and seconds by stage of the second run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", default="demo", help="folder with Cosmos3 weights, or demo (%(default)s)")
    parser.add_argument("--device", default="cuda", help="device to compare with the CPU (%(default)s)")
    parser.add_argument("--guidance-scale", type=float, default=6.0, help="1 switches guidance off (%(default)s)")
    args = parser.parse_args()
    expected = run(args, "cpu", torch.float32)
    for dtype in (torch.float32, torch.bfloat16):
        got = run(args, args.device, dtype)
        print(json.dumps({"device": device_name(args.device), "dtype": str(dtype), **compare(got, expected)}))


def run(args: argparse.Namespace, device: str, dtype: torch.dtype) -> GenerationResult:
    """The second of two runs, so that nothing is loaded or warmed up in it."""
    pipeline = Cosmos3Pipeline.from_pretrained(args.checkpoint, device, dtype)
    params = pipeline.checkpoint.defaults.params(
        prompt="A red ball bounces.",
        generate_sound=pipeline.checkpoint.sound is not None,
        guidance_scale=args.guidance_scale,
    )
    pipeline(params)
    return pipeline(params)


def compare(got: GenerationResult, expected: GenerationResult) -> dict[str, Any]:
    """Relative errors of the latents, the mean difference of 8-bit pixels, and the run's timings."""
    pixels = (torch.from_numpy(got.frames).float() - torch.from_numpy(expected.frames).float()).abs().mean()
    errors = {"video_latents": relative_error(got.video_latents, expected.video_latents)}
    if got.sound_latents is not None and expected.sound_latents is not None:
        errors["sound_latents"] = relative_error(got.sound_latents, expected.sound_latents)
    return {
        "relative_error": errors,
        "mean_pixel_difference": round(float(pixels), 3),
        "seconds": {stage: round(seconds, 4) for stage, seconds in got.timings.items()},
    }


def relative_error(got: torch.Tensor, expected: torch.Tensor) -> float:
    """Euclidean distance over the length of what is expected, in fp64."""
    return float(f"{(got.double() - expected.double()).norm() / expected.double().norm():.2e}")


def device_name(device: str) -> str:
    """The card's own name."""
    return torch.cuda.get_device_name(device) if device.startswith("cuda") else device


if __name__ == "__main__":
    main()
