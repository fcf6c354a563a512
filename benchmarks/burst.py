"""Bursts of submissions of the tiniest job, on a server of its own: submissions a second, latencies, status codes, CPU.

python -m benchmarks.burst
"""

import asyncio
import json
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from statistics import median, quantiles
from typing import Any, NamedTuple

import aiohttp

from benchmarks import processes
from benchmarks.server import TINIEST, Server, server, server_parser

SETTLE_S = 2.0  # between bursts: what runs stops meanwhile
LEAST_MS = 0.1  # a process that took less CPU per request is not listed


class Answer(NamedTuple):
    """Of one request."""

    code: int
    seconds: float
    video_id: str | None


def main() -> None:
    """Print one line of JSON."""
    parser = server_parser(__doc__, 8124)
    parser.add_argument("--database", help="URL of a PostgreSQL database; none: SQLite")
    parser.add_argument("--posts", type=int, default=100, help="requests in a burst (%(default)s)")
    parser.add_argument("--bursts", type=int, default=5, help="bursts, each on an empty queue (%(default)s)")
    parser.add_argument(
        "--elsewhere", action="store_true", help="let the denoiser compute nothing, as if on a machine of its own"
    )
    args = parser.parse_args()
    options = {"checkpoint": args.checkpoint, "database_url": args.database}
    with tempfile.TemporaryDirectory() as folder, server(Path(folder), args.port, **options) as started:
        bursts = asyncio.run(measure(started, args.posts, args.bursts, args.elsewhere))
    print(json.dumps({"posts": args.posts, "denoiser elsewhere": args.elsewhere, **bursts}))


async def measure(started: Server, posts: int, bursts: int, elsewhere: bool) -> dict[str, Any]:
    """Bursts of submissions, and bursts of a request that does next to nothing: what Serve and the client allow."""
    # httpx's pool takes longer to find a free connection among a hundred than a request takes.
    connections = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(started.url, connector=connections) as client:
        await _burst(lambda: _models(client), posts, started.pid)  # opens the connections
        models = [await _burst(lambda: _models(client), posts, started.pid) for _ in range(bursts)]
        submissions = []
        with _stopped(started.pid, "Denoiser") if elsewhere else nullcontext():
            for _ in range(bursts):
                submissions.append(await _burst(lambda: _post(client), posts, started.pid))
                await _empty(client, submissions[-1]["ids"])
    return {"GET /v1/models": _summary(models), "POST /v1/videos": _summary(submissions)}


async def _burst(request: Callable[[], Awaitable[Answer]], requests: int, pid: int) -> dict[str, Any]:
    """Send all requests at once on open connections."""
    before, start = processes.cpu_s(pid), time.perf_counter()
    answers = await asyncio.gather(*(request() for _ in range(requests)))
    wall_s = time.perf_counter() - start
    spent = processes.growth(before, processes.cpu_s(pid))
    return {
        "per_s": requests / wall_s,
        "seconds": [answer.seconds for answer in answers],
        "codes": Counter(answer.code for answer in answers),
        "ids": [answer.video_id for answer in answers if answer.video_id],
        "cpu_ms": defaultdict(float, {name: 1000 * seconds / requests for name, seconds in spent.items()}),
    }


def _summary(bursts: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians over the bursts; the codes of all; CPU milliseconds of a request by process."""
    names = {name for burst in bursts for name in burst["cpu_ms"]}
    cpu_ms = {name: round(median(burst["cpu_ms"][name] for burst in bursts), 2) for name in names}
    largest = sorted((name for name in names if cpu_ms[name] >= LEAST_MS), key=cpu_ms.__getitem__, reverse=True)
    return {
        "per_s": round(median(burst["per_s"] for burst in bursts), 1),
        "p50_s": round(median(median(burst["seconds"]) for burst in bursts), 2),
        "p99_s": round(median(quantiles(burst["seconds"], n=100)[98] for burst in bursts), 2),
        "codes": dict(sum((burst["codes"] for burst in bursts), Counter())),
        "cpu_ms": {name: cpu_ms[name] for name in largest},
    }


async def _models(client: aiohttp.ClientSession) -> Answer:
    start = time.perf_counter()
    async with client.get("/v1/models") as response:
        await response.read()
    return Answer(response.status, time.perf_counter() - start, None)


async def _post(client: aiohttp.ClientSession) -> Answer:
    start = time.perf_counter()
    async with client.post("/v1/videos", json=TINIEST) as response:
        body = await response.json()
    return Answer(response.status, time.perf_counter() - start, body.get("id"))


async def _empty(client: aiohttp.ClientSession, ids: list[str]) -> None:
    """Delete a burst's videos, a few at a time, and wait until the server has stopped what ran."""
    for start in range(0, len(ids), 20):
        await asyncio.gather(*(_delete(client, video_id) for video_id in ids[start : start + 20]))
    await asyncio.sleep(SETTLE_S)


async def _delete(client: aiohttp.ClientSession, video_id: str) -> None:
    async with client.delete(f"/v1/videos/{video_id}") as response:
        await response.read()


@contextmanager
def _stopped(pid: int, deployment: str) -> Iterator[None]:
    """A deployment's replicas take no time meanwhile, as if they were on another machine."""
    replicas = processes.of_deployment(pid, deployment)
    for replica in replicas:
        replica.suspend()
    try:
        yield
    finally:
        for replica in replicas:
            replica.resume()


if __name__ == "__main__":
    main()
