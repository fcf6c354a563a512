"""Where one sampler step with guidance goes, by class of kernel.

python -m benchmarks.step_profile --size 720x1280x189
"""

import argparse
from collections import defaultdict
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks import nano
from benchmarks.denoise_step import Case, take_steps
from benchmarks.measure import report
from cosmos3_models.transformer.generation_tower import Condition
from cosmos3_models.transformer.model import Transformer

# The first class with a word in the kernel's name counts.
CLASSES = {
    "attention": ("flash", "fmha", "sdpa", "_attention_kernel"),
    "norms and rotary": ("_rms_norm", "_norm_quantized", "_attention_inputs"),
    "SwiGLU": ("_swiglu",),
    "quantisation": ("_quantize",),
    "matrix products": ("gemm", "nvjet", "cutlass", "xmma", "splitk"),
    "copies and the rest": ("",),
}
LISTED = 12  # kernels by name


def main() -> None:
    args = _parser().parse_args()
    case = Case.of(args.size, args.device)
    model = nano.transformer(args.device, torch.bfloat16, args.layers)
    conditions = case.conditions(model)
    take_steps(model, case, conditions, 1)
    seconds = take_steps(model, case, conditions, 2)[-1]
    with profile(activities=[ProfilerActivity.CUDA]) as record:
        take_steps(model, case, conditions, 1)
    kernels: dict[str, float] = defaultdict(float)
    for event in record.events():
        kernels[event.name] += event.device_time_total / 1e6
    report(rows(kernels, seconds, operations(model, case, conditions)), args.device)
    for name, busy in sorted(kernels.items(), key=lambda item: -item[1])[:LISTED]:
        print(f"{busy:9.4f} s  {name[:120]}")


def rows(kernels: dict[str, float], seconds: float, tflop: dict[str, float]) -> list[dict[str, Any]]:
    """Seconds by class; gaps are what the unprofiled step takes beyond its kernels."""
    busy: dict[str, float] = defaultdict(float)
    for name, spent in kernels.items():
        busy[next(kind for kind, words in CLASSES.items() if any(word in name for word in words))] += spent
    busy["gaps"] = seconds - sum(busy.values())
    table: list[dict[str, Any]] = [
        {"class": kind, "seconds": spent, "share": spent / seconds} for kind, spent in busy.items()
    ]
    for row in table:
        if work := tflop.get(row["class"]):
            row |= {"tflop": work, "tflop_per_s": work / row["seconds"]}
    return [*table, {"class": "step", "seconds": seconds}]


def operations(model: Transformer, case: Case, conditions: list[Condition]) -> dict[str, float]:
    """Of a step in TFLOP: two for every weight and token, four for every channel of a query-key pair."""
    config = model.config
    tokens = case.grid.patches(config.latent_patch_size).cells
    weights = sum(p.numel() for p in model.generation.layers.parameters() if p.ndim > 1)
    seen = sum(tokens + condition.text[0].key.shape[1] for condition in conditions)
    width = config.num_hidden_layers * config.num_attention_heads * config.head_dim
    return {
        "matrix products": 2 * weights * tokens * len(conditions) / 1e12,
        "attention": 4 * tokens * seen * width / 1e12,
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="720x1280x189", help="height x width x frames (%(default)s)")
    parser.add_argument("--layers", type=int, default=nano.TRANSFORMER["num_hidden_layers"], help="fewer for a trial")
    parser.add_argument("--device", default="cuda")
    return parser


if __name__ == "__main__":
    main()
