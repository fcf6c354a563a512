"""Seconds and memory to encode a request's prompts with the text tower on the device and in host memory.

The largest difference is that of any key or value between the two; it must be 0.

python -m benchmarks.text_tower
"""

import argparse
import gc
from typing import Any

import torch
from torch import Tensor

from benchmarks import nano
from benchmarks.denoise_step import Case
from benchmarks.measure import median_s, peak_gib, report
from cosmos3_models.transformer.model import Transformer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=nano.TRANSFORMER["num_hidden_layers"], help="fewer for a trial")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cuda")
    args = parser.parse_args()
    case = Case.of("480x832x49", args.device)
    model = nano.transformer(args.device, torch.bfloat16, args.layers)
    rows = [{"text tower": "device"} | measured(model, case, args.repeats)]
    expected = keys_values(model, case)
    model.text.offload(model.device, model.dtype)
    rows.append({"text tower": "host"} | measured(model, case, args.repeats))
    got = keys_values(model, case)
    difference = max(float((a - b).abs().max()) for a, b in zip(got, expected, strict=True))
    rows[-1] |= {"largest_difference": difference}
    report(rows, args.device)


def measured(model: Transformer, case: Case, repeats: int) -> dict[str, Any]:
    """Seconds and, on a GPU, GiB: of the model at rest, and at the peak of encoding."""
    gc.collect()
    row: dict[str, Any] = {"text_s": median_s(lambda: case.conditions(model), repeats)}
    if model.device.type == "cuda":
        row |= {"resident_gib": torch.cuda.memory_allocated() / 2**30}
        row |= {"peak_gib": peak_gib(lambda: case.conditions(model))}
    return row


def keys_values(model: Transformer, case: Case) -> list[Tensor]:
    """Of every prompt and layer, in host memory."""
    return [x.float().cpu() for condition in case.conditions(model) for own in condition.text for x in own]


if __name__ == "__main__":
    main()
