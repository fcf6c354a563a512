"""Bursts of submissions of the tiniest job, on a server of its own: submissions a second, latencies, status codes.

python -m benchmarks.burst
"""

import argparse
import asyncio
import json
import tempfile
import time
from collections import Counter
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import httpx

from benchmarks.server import server
from cosmos3_models.checkpoint import DEMO, checkpoint_folder

TINIEST = {"prompt": "A red ball bounces.", "size": "64x64", "num_frames": 5, "num_inference_steps": 1}
DRAIN_S = 300.0


def main() -> None:
    """Print one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    checkpoint = {"default": DEMO, "type": lambda path: str(checkpoint_folder(path))}
    parser.add_argument("--checkpoint", **checkpoint, help="folder with Cosmos3 weights, or demo (%(default)s)")
    parser.add_argument("--database", help="URL of a PostgreSQL database; none: SQLite")
    parser.add_argument("--posts", type=int, default=100, help="requests in a burst (%(default)s)")
    parser.add_argument("--bursts", type=int, default=3, help="bursts, each after the queue is empty (%(default)s)")
    parser.add_argument("--port", type=int, default=8124, help="port of the server (%(default)s)")
    args = parser.parse_args()
    options = {"checkpoint": args.checkpoint, "database_url": args.database}
    with tempfile.TemporaryDirectory() as folder, server(Path(folder), args.port, **options) as started:
        bursts = [asyncio.run(burst(started.url, args.posts)) for _ in range(args.bursts)]
    print(json.dumps({"posts": args.posts, "bursts": bursts}))


async def burst(url: str, posts: int) -> dict[str, Any]:
    """Send all requests at once on open connections; then wait until the queue is empty.

    ``models_per_s`` is the same burst of a request that does next to nothing: what the client, Serve's proxy and the
    machine allow.
    """
    limits = httpx.Limits(max_connections=posts, max_keepalive_connections=posts)
    async with httpx.AsyncClient(base_url=url, timeout=60, limits=limits) as client:
        await _models(client, posts)  # opens the connections
        models_s = await _models(client, posts)
        start = time.perf_counter()
        answers = await asyncio.gather(*(_post(client) for _ in range(posts)))
        wall_s = time.perf_counter() - start
        await _drained(client)
    seconds = [took for _, took in answers]
    return {
        "per_s": round(posts / wall_s, 1),
        "models_per_s": round(posts / models_s, 1),
        "p50_s": round(median(seconds), 2),
        "p99_s": round(quantiles(seconds, n=100)[98], 2),
        "codes": dict(Counter(code for code, _ in answers)),
    }


async def _models(client: httpx.AsyncClient, requests: int) -> float:
    """Seconds of a burst of requests for the models."""
    start = time.perf_counter()
    await asyncio.gather(*(client.get("/v1/models") for _ in range(requests)))
    return time.perf_counter() - start


async def _post(client: httpx.AsyncClient) -> tuple[int, float]:
    """The status code and the seconds of one submission."""
    start = time.perf_counter()
    response = await client.post("/v1/videos", json=TINIEST)
    return response.status_code, time.perf_counter() - start


async def _drained(client: httpx.AsyncClient) -> None:
    deadline = time.monotonic() + DRAIN_S
    while any(video["status"] in ("queued", "in_progress") for video in await _newest(client)):
        if time.monotonic() > deadline:
            raise TimeoutError(f"the queue is not empty after {DRAIN_S} s")
        await asyncio.sleep(1)


async def _newest(client: httpx.AsyncClient) -> list[dict[str, Any]]:
    videos: list[dict[str, Any]] = (
        (await client.get("/v1/videos", params={"limit": 100})).raise_for_status().json()["data"]
    )
    return videos


if __name__ == "__main__":
    main()
