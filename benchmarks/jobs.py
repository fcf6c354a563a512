"""Latency of the job routes over a full table, and the time from DELETE to a free denoiser, on a server of its own.

python -m benchmarks.jobs
"""

import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import httpx
from sqlalchemy import create_engine

from benchmarks.measure import environment
from benchmarks.server import LONG, server, server_parser, wait_until
from cosmos3_models import GenerationParams
from serve.jobs.columns import JOBS
from serve.jobs.migrations import prepare


def main() -> None:
    """Print one line of JSON."""
    parser = server_parser(__doc__, 8123)
    parser.add_argument("--stored", type=int, default=10_000, help="finished jobs in the table (%(default)s)")
    parser.add_argument("--requests", type=int, default=300, help="requests of each kind (%(default)s)")
    parser.add_argument("--cancels", type=int, default=5, help="running jobs to delete (%(default)s)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        ids = fill(Path(folder), args.stored)
        with (
            server(Path(folder), args.port, checkpoint=args.checkpoint) as started,
            httpx.Client(base_url=started.url, timeout=60) as client,
        ):
            figures = latencies(client, ids, args.requests) | {"cancel": cancel(client, args.cancels)}
    print(json.dumps(environment("cpu") | {"stored_jobs": args.stored, **figures}))


def fill(folder: Path, stored: int) -> list[str]:
    """Write finished jobs into the table that the server will open; their ids."""
    url = f"sqlite:///{folder}/jobs.sqlite"
    prepare(url)
    params, now = GenerationParams(prompt="A red ball bounces."), time.time()
    finished: dict[str, Any] = {
        "status": "completed",
        "model": "cosmos3-demo",
        "params": params.model_dump(),
        "created_at": now,
        "started_at": now,
        "completed_at": now,
        "deadline_at": now + 1e6,
        "expires_at": now + 1e6,
        "attempts": 1,
        "step": 35,
        "steps": 35,
        "stage_durations": {"denoiser": 1.0, "decoders": 1.0},
    }
    rows = [finished | {"id": f"video_{number:032x}"} for number in range(stored)]
    engine = create_engine(url)
    with engine.begin() as connection:
        connection.execute(JOBS.insert(), rows)
    engine.dispose()
    return [row["id"] for row in rows]


def latencies(client: httpx.Client, ids: list[str], requests: int) -> dict[str, Any]:
    """Milliseconds of each kind of request, one after the other on one connection."""
    made: list[str] = []

    def post(_: int) -> None:
        made.append(client.post("/v1/videos", json=LONG).raise_for_status().json()["id"])

    def get(number: int) -> None:
        client.get(f"/v1/videos/{ids[number * 7919 % len(ids)]}").raise_for_status()

    def page(number: int) -> None:
        client.get("/v1/videos", params={"after": ids[number * 7919 % len(ids)]}).raise_for_status()

    def active(number: int) -> None:
        client.get(f"/v1/videos/{made[number % len(made)]}").raise_for_status()

    def delete(_: int) -> None:
        client.delete(f"/v1/videos/{made.pop()}").raise_for_status()

    queued = min(requests, 200)  # what the queue takes
    figures = {"POST": timed(post, queued), "GET one of the queue": timed(active, requests)}
    figures |= {"GET a finished one": timed(get, requests), "GET a page of 20": timed(page, requests)}
    return figures | {"DELETE": timed(delete, queued)}


def timed(request: Callable[[int], None], requests: int) -> dict[str, float]:
    """p50 and p99 in milliseconds."""
    milliseconds = []
    for number in range(requests):
        start = time.perf_counter()
        request(number)
        milliseconds.append((time.perf_counter() - start) * 1000)
    return {"p50_ms": round(median(milliseconds), 1), "p99_ms": round(quantiles(milliseconds, n=100)[98], 1)}


def cancel(client: httpx.Client, times: int) -> dict[str, float]:
    """From the DELETE of a running job to the start of the next one's denoise, in seconds and in steps."""
    seconds, steps = zip(*(cancel_once(client) for _ in range(times)), strict=True)
    return {"seconds": round(median(seconds), 2), "steps": round(median(steps), 2), "most_steps": round(max(steps), 2)}


def cancel_once(client: httpx.Client) -> tuple[float, float]:
    """Seconds, and how many of the deleted job's steps they would have been."""
    running, waiting = (client.post("/v1/videos", json=LONG).json()["id"] for _ in range(2))
    wait_until(lambda: _step(client, running) >= 1, 120)
    begun, done = time.perf_counter(), _step(client, running)
    wait_until(lambda: _step(client, running) >= done + 4, 120)
    step_s = (time.perf_counter() - begun) / (_step(client, running) - done)
    start = time.perf_counter()
    client.delete(f"/v1/videos/{running}")
    wait_until(lambda: bool(client.get(f"/v1/videos/{waiting}").json()["status"] == "in_progress"), 120)
    took_s = time.perf_counter() - start
    client.delete(f"/v1/videos/{waiting}")
    return took_s, took_s / step_s


def _step(client: httpx.Client, video: str) -> int:
    step: int = client.get(f"/v1/videos/{video}").json()["step"]
    return step


if __name__ == "__main__":
    main()
