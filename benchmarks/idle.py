"""What a server costs while nothing happens, and while one job runs and fifty wait: CPU, wake-ups, memory, processes.

python -m benchmarks.idle
"""

import json
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import httpx

from benchmarks import processes
from benchmarks.server import LONG, server, server_parser, wait_until

SETTLE_S = 20.0  # what a server that has just started does once more


def main() -> None:
    """Print one line of JSON."""
    parser = server_parser(__doc__, 8125)
    parser.add_argument("--seconds", type=float, default=60, help="length of each measurement (%(default)s)")
    parser.add_argument("--waiting", type=int, default=50, help="jobs that wait while one runs (%(default)s)")
    args = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as folder,
        server(Path(folder), args.port, checkpoint=args.checkpoint) as started,
        httpx.Client(base_url=started.url, timeout=60) as client,
    ):
        time.sleep(SETTLE_S)
        idle = cost(started.pid, args.seconds)
        memory = processes.memory_mb(started.pid)
        started_processes = processes.count(started.pid)
        _submit(client, args.waiting)
        waiting = cost(started.pid, args.seconds)
    figures = {
        "idle": idle,
        "one job runs, others wait": {"waiting": args.waiting} | waiting,
        "processes": started_processes,
        "memory_mb": {"ours": round(processes.ours(memory)), "ray": round(processes.rays(memory))},
    }
    print(json.dumps(figures))


def cost(pid: int, seconds: float) -> dict[str, Any]:
    """CPU in percent of a core and wake-ups a second, by process and together."""
    cpu_before, switches_before = processes.cpu_s(pid), processes.switches(pid)
    time.sleep(seconds)
    cpu = processes.growth(cpu_before, processes.cpu_s(pid))
    switches = processes.growth(switches_before, processes.switches(pid))
    percent = defaultdict(float, {name: 100 * spent / seconds for name, spent in cpu.items()})
    return {
        "cpu_percent": {
            "ours": round(processes.ours(percent), 2),
            "ours without the model stages": round(percent["Ingress"] + percent["JobRunner"], 2),
            "ray": round(processes.rays(percent), 2),
            "by process": {name: round(value, 2) for name, value in percent.items() if value >= 0.05},
        },
        "wakeups_per_s": {name: round(switches[name] / seconds, 1) for name in processes.OURS},
    }


def _submit(client: httpx.Client, waiting: int) -> None:
    """Let a long job run, and store others behind it."""
    videos = [client.post("/v1/videos", json=LONG).raise_for_status().json()["id"] for _ in range(1 + waiting)]
    wait_until(lambda: bool(client.get(f"/v1/videos/{videos[0]}").json()["step"]), 120, period_s=0.5)
    time.sleep(SETTLE_S)


if __name__ == "__main__":
    main()
