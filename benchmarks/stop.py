"""How long a server takes to stop after a signal while it makes videos, and what becomes of them.

python -m benchmarks.stop
"""

import argparse
import contextlib
import json
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import yaml
from sqlalchemy import create_engine, select

from benchmarks.server import descendants, runs, wait_until
from serve.job_schema import JOBS

COMMANDS = {"python -m serve": ["-m", "serve"], "serve run": ["-m", "ray.serve.scripts", "run"]}
SIGNALS = {"SIGTERM": signal.SIGTERM, "Ctrl-C": signal.SIGINT}
REQUEST = {"prompt": "A large red ball bounces slowly on the floor.", "generate_sound": True}
PATIENCE_S = 300.0


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
    config = yaml.safe_load(Path("deploy.yaml").read_text())
    config["http_options"]["port"] = args.port
    config["applications"][0]["args"]["data_dir"] = str(folder)
    file = folder / "deploy.yaml"
    file.write_text(yaml.safe_dump(config))
    url, answers = f"http://127.0.0.1:{args.port}", []
    with (folder / "log").open("w") as log:
        process = subprocess.Popen([sys.executable, *COMMANDS[command], str(file)], stdout=log, stderr=log)
    wait_until(lambda: _status(f"{url}/health") == 200, PATIENCE_S, period_s=0.5)
    sync = threading.Thread(target=lambda: answers.append(_status(f"{url}/v1/videos/sync", REQUEST)))
    sync.start()
    ids = [httpx.post(f"{url}/v1/videos", json=REQUEST, timeout=60).json()["id"] for _ in range(args.jobs)]
    wait_until(
        lambda: any(httpx.get(f"{url}/v1/videos/{one}").json()["status"] == "in_progress" for one in ids), PATIENCE_S
    )
    family = descendants(process.pid)
    start = time.perf_counter()
    process.send_signal(SIGNALS[name])
    status = process.wait(PATIENCE_S)
    seconds = time.perf_counter() - start
    sync.join()
    time.sleep(1)
    engine = create_engine(f"sqlite:///{folder}/jobs.sqlite")
    with engine.connect() as connection:
        jobs = Counter(connection.execute(select(JOBS.c.status)).scalars())
    return {
        "command": command,
        "signal": name,
        "seconds": round(seconds, 1),
        "exit_status": status,
        "sync": answers[0],
        "jobs": dict(jobs),
        "processes_left": sum(map(runs, family)),
        "last_line": (folder / "log").read_text(errors="replace").splitlines()[-1][:120],
    }


def _status(url: str, body: dict[str, Any] | None = None) -> int | str:
    """Of a GET, or of a POST with a body; the error where there is no answer."""
    try:
        with contextlib.closing(httpx.Client(timeout=PATIENCE_S)) as client:
            return (client.get(url) if body is None else client.post(url, json=body)).status_code
    except httpx.TransportError as error:
        return type(error).__name__


if __name__ == "__main__":
    main()
