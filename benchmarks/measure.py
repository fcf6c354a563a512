"""Timing on a device, errors, and how results are printed."""

import json
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks.machine import Machine


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def median_s(run: Callable[[], object], repeats: int, warm_up: int = 1) -> float:
    """The median seconds of ``repeats`` runs after ``warm_up`` others, the device's work included."""
    seconds = []
    for _ in range(warm_up + repeats):
        synchronize()
        start = time.perf_counter()
        run()
        synchronize()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[warm_up:])


def peak_gib(run: Callable[[], object]) -> float:
    """The most memory that tensors held during ``run``, in GiB."""
    torch.cuda.reset_peak_memory_stats()
    run()
    synchronize()
    return torch.cuda.max_memory_allocated() / 2**30


def relative_error(got: Tensor, expected: Tensor) -> float:
    """Euclidean distance over the length of what is expected, in fp64."""
    got, expected = got.double().cpu(), expected.double().cpu()
    return float((got - expected).norm() / expected.norm())


def environment(device: str) -> dict[str, str]:
    """The card or the CPU, and the version of torch."""
    here = Machine.here()
    cpu = f"{here.cpu}, {here.cores} cores, {here.instructions}"
    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else cpu
    return {"device": name, "torch": torch.__version__}


def report(rows: Sequence[dict[str, Any]], device: str) -> None:
    """A line of JSON for machines, then a table for people."""
    print(json.dumps(environment(device) | {"results": list(rows)}))
    print_table(rows)


def print_table(rows: Sequence[dict[str, Any]]) -> None:
    """Columns in the order in which rows name them first."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    cells = [names] + [[_cell(row.get(name, "")) for name in names] for row in rows]
    widths = [max(len(line[i]) for line in cells) for i in range(len(names))]
    for line in cells:
        print("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)))


def _cell(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
