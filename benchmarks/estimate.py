"""``eta_s`` against the truth, on a server of its own: each size alone, all at once, and both again after a restart.

python -m benchmarks.estimate
"""

import argparse
import random
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import httpx

from benchmarks.machine import Machine
from benchmarks.queue_times import read_jobs
from benchmarks.server import server

SIZES = ("64x64x5x1", "64x64x33x16", "128x128x17x16", "192x192x33x16", "256x256x33x16", "384x256x49x16", "512x384x65x8")
Ratios = dict[tuple[str, str], list[tuple[float, float | None]]]
"""By phase and size: seconds that it took, and the estimate over them."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", default="demo", help="folder with Cosmos3 weights, or demo (%(default)s)")
    parser.add_argument("--sizes", nargs="+", default=SIZES, help="width x height x frames x steps (%(default)s)")
    parser.add_argument("--repeats", type=int, default=2, help="of each phase (%(default)s)")
    parser.add_argument("--port", type=int, default=8124, help="where the server listens (%(default)s)")
    args = parser.parse_args()
    found: Ratios = defaultdict(list)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for life in ("first start", "after a restart"):
            with (
                server(folder, args.port, checkpoint=args.checkpoint) as started,
                httpx.Client(base_url=started.url, timeout=60) as client,
            ):
                if life == "first start":
                    run(client, folder, found, "never made before", [[size] for size in args.sizes])
                for _ in range(args.repeats):
                    mixed = random.sample(args.sizes, len(args.sizes))
                    run(client, folder, found, f"alone, {life}", [[size] for size in mixed])
                    run(client, folder, found, f"in a queue of all, {life}", [mixed])
    show(found, args.sizes)


def run(client: httpx.Client, folder: Path, found: Ratios, phase: str, rounds: list[list[str]]) -> None:
    """Submit each round's sizes at once, note what is estimated, and wait for the round's end."""
    for sizes in rounds:
        ids = [client.post("/v1/videos", json=request(size)).raise_for_status().json()["id"] for size in sizes]
        asked_at = time.time()
        records = [client.get(f"/v1/videos/{video}").raise_for_status().json() for video in ids]
        for video in ids:
            wait(client, video)
        for size, record, job in zip(sizes, records, read_jobs(folder / "jobs.sqlite", ids), strict=True):
            took_s, eta_s = job["completed_at"] - asked_at, record["eta_s"]
            ratio = None if eta_s is None else eta_s / took_s
            found[phase, size].append((took_s, ratio))
            print(phase, size, f"{took_s:.2f} s", ratio and f"{ratio:.2f}", job["stage_durations"], file=sys.stderr)


def request(size: str) -> dict[str, Any]:
    width, height, frames, steps = map(int, size.split("x"))
    return {
        "prompt": "A large red ball bounces slowly on the floor.",
        "size": f"{width}x{height}",
        "num_frames": frames,
        "num_inference_steps": steps,
    }


def wait(client: httpx.Client, video: str) -> None:
    """Until it is completed, without asking again and again."""
    with client.stream("GET", f"/v1/videos/{video}/events", timeout=None) as events:
        last = [line for line in events.iter_lines() if line.startswith("data:")][-1]
    if '"completed"' not in last:
        raise RuntimeError(last)


def show(found: Ratios, sizes: tuple[str, ...]) -> None:
    """A table in Markdown."""
    phases = list(dict.fromkeys(phase for phase, _ in found))
    print(Machine.here())
    print("| size x frames x steps | alone, seconds |", " | ".join(phases), "|")
    print("|---" * (len(phases) + 2) + "|")
    for size in sizes:
        alone = median(took_s for phase in phases if "alone" in phase for took_s, _ in found[phase, size])
        print(f"| {size} | {alone:.2f} |", " | ".join(map(" ".join, cells(found, size, phases))), "|")


def cells(found: Ratios, size: str, phases: list[str]) -> Iterator[list[str]]:
    """Estimate over truth in each phase, every repeat; unknown where there was no estimate."""
    for phase in phases:
        yield ["unknown" if ratio is None else f"{ratio:.2f}" for _, ratio in found[phase, size]]


if __name__ == "__main__":
    main()
