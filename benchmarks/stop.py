"""How long a server takes to stop after a signal while it makes videos, and what becomes of them.

python -m benchmarks.stop
"""

import argparse
import json
import signal
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
from sqlalchemy import create_engine, select

from benchmarks.server import SERVE_RUN, descendants, runs, server, wait_until
from serve.jobs.columns import JOBS

COMMANDS = {"cosmos3 serve": ("-m", "serve", "serve"), "serve run": SERVE_RUN}
SIGNALS = {"SIGTERM": signal.SIGTERM, "Ctrl-C": signal.SIGINT}
REQUEST = {"prompt": "A large red ball bounces slowly on the floor.", "generate_sound": True}
PATIENCE_S = 300.0
SETTLE_S = 1.0  # for processes that end with the server


def main() -> None:
    """Print a line of JSON for each command and signal."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=2, help="stored jobs when the signal comes (%(default)s)")
    parser.add_argument("--port", type=int, default=8129, help="port of the server (%(default)s)")
    args = parser.parse_args()
    for command in COMMANDS:
        for name in SIGNALS:
            with tempfile.TemporaryDirectory() as folder:
                print(json.dumps(stopped(Path(folder), command, name, args)), flush=True)


def stopped(folder: Path, command: str, name: str, args: argparse.Namespace) -> dict[str, Any]:
    """Start a server, give it jobs and one request of the sync route, and send it a signal."""
    with server(folder, args.port, command=COMMANDS[command]) as started:
        answers: list[int | str] = []
        sync = threading.Thread(target=lambda: answers.append(_answer(started.url)))
        sync.start()
        _submit(started.url, args.jobs)
        family = descendants(started.pid)
        start = time.perf_counter()
        started.process.send_signal(SIGNALS[name])
        status = started.process.wait(PATIENCE_S)
        seconds = time.perf_counter() - start
        sync.join()
        time.sleep(SETTLE_S)
        left = sum(map(runs, family))
    return {
        "command": command,
        "signal": name,
        "seconds": round(seconds, 1),
        "exit_status": status,
        "sync": answers[0],
        "jobs": _states(folder),
        "processes_left": left,
        "last_line": started.log.read_text(errors="replace").splitlines()[-1][:120],
    }


def _submit(url: str, jobs: int) -> None:
    """Store jobs, and wait until one of them is being made."""
    with httpx.Client(base_url=url, timeout=60) as client:
        ids = [client.post("/v1/videos", json=REQUEST).json()["id"] for _ in range(jobs)]
        wait_until(
            lambda: any(client.get(f"/v1/videos/{one}").json()["status"] == "in_progress" for one in ids), PATIENCE_S
        )


def _answer(url: str) -> int | str:
    """The status code of the sync route, or the error where there is no answer."""
    try:
        return httpx.post(f"{url}/v1/videos/sync", json=REQUEST, timeout=PATIENCE_S).status_code
    except httpx.TransportError as error:
        return type(error).__name__


def _states(folder: Path) -> dict[str, int]:
    """How many stored jobs are in each state."""
    engine = create_engine(f"sqlite:///{folder}/jobs.sqlite")
    with engine.connect() as connection:
        return dict(Counter(connection.execute(select(JOBS.c.status)).scalars()))


if __name__ == "__main__":
    main()
