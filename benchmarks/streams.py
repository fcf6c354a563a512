"""What open streams of events cost the ingress, on a server of its own, while a job is made and others wait.

python -m benchmarks.streams
"""

import argparse
import asyncio
import json
import tempfile
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx
import psycopg

from benchmarks import processes
from benchmarks.server import LONG, Server, server, server_parser

JOBS = 8


def main() -> None:
    """Print one line of JSON."""
    parser = server_parser(__doc__, 8127)
    parser.add_argument("--database", help="URL of a PostgreSQL database, which counts transactions; none: SQLite")
    parser.add_argument("--streams", type=int, default=192, help="streams to open (%(default)s)")
    parser.add_argument("--seconds", type=float, default=20, help="to measure (%(default)s)")
    args = parser.parse_args()
    options = {"checkpoint": args.checkpoint, "database_url": args.database}
    with tempfile.TemporaryDirectory() as folder, server(Path(folder), args.port, **options) as started:
        print(json.dumps({"streams": args.streams, **asyncio.run(measure(started, args))}))


async def measure(started: Server, args: argparse.Namespace) -> dict[str, Any]:
    """CPU of the ingress and transactions of the database, without streams and with them."""
    timeout = httpx.Timeout(60, read=None)
    limits = httpx.Limits(max_connections=args.streams + 10)
    async with (
        httpx.AsyncClient(base_url=started.url, timeout=timeout, limits=limits) as client,
        AsyncExitStack() as open_,
    ):
        jobs = [(await client.post("/v1/videos", json=LONG)).raise_for_status().json()["id"] for _ in range(JOBS)]
        await asyncio.sleep(2)  # until the first is being made
        without = await _use(started, args)
        lines = [0]
        for number in range(args.streams):
            path = f"/v1/videos/{jobs[number % JOBS]}/events"
            response = await open_.enter_async_context(client.stream("GET", path))
            task = asyncio.create_task(_count(response.raise_for_status(), lines))
            open_.callback(task.cancel)
        await asyncio.sleep(2)
        before = lines[0]
        with_streams = await _use(started, args)
        with_streams["events_per_s"] = round((lines[0] - before) / args.seconds, 1)
    return {"without": without, "with": with_streams}


async def _count(response: httpx.Response, lines: list[int]) -> None:
    async for line in response.aiter_lines():
        lines[0] += line.startswith("data:")


async def _use(started: Server, args: argparse.Namespace) -> dict[str, Any]:
    before, transactions = processes.cpu_s(started.pid)["Ingress"], _transactions(args.database)
    await asyncio.sleep(args.seconds)
    use: dict[str, Any] = {"ingress_cores": round((processes.cpu_s(started.pid)["Ingress"] - before) / args.seconds, 4)}
    if args.database:
        use["transactions_per_s"] = round((_transactions(args.database) - transactions) / args.seconds, 1)
    return use


def _transactions(database: str | None) -> int:
    """Transactions of all clients so far."""
    if database is None:
        return 0
    with psycopg.connect(database) as connection:
        query = "SELECT xact_commit + xact_rollback FROM pg_stat_database WHERE datname = current_database()"
        found = connection.execute(query).fetchone()
    assert found is not None
    return int(found[0])


if __name__ == "__main__":
    main()
