"""A server of a benchmark's own: deploy.yaml with other arguments and another port, of which nothing is left after."""

import argparse
import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import psutil
import yaml

from cosmos3_models.checkpoint.folder import DEMO, checkpoint_folder

TINIEST = {"prompt": "A red ball bounces.", "size": "64x64", "num_frames": 5, "num_inference_steps": 1}
LONG = {"prompt": "A red ball bounces.", "size": "512x512", "num_frames": 65, "num_inference_steps": 200}
SERVE_RUN = ("-m", "ray.serve.scripts", "run")
LEAVING_S = 20.0  # what a stopped server may take to go
COLOUR = re.compile(r"\x1b\[\d+m")
STAMP = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}")


@dataclass(frozen=True)
class Server:
    """A server that answers /health with 200.

    Attributes:
        launched_at: seconds since the epoch.
        ready_s: from the launch to that answer.
        log: what the server's processes print.
    """

    url: str
    process: "subprocess.Popen[bytes]"
    launched_at: float
    ready_s: float
    log: Path

    @property
    def pid(self) -> int:
        return self.process.pid

    def logged(self, pattern: str) -> Iterator[tuple[float, str]]:
        """Seconds since the launch and text of the log's dated lines that match."""
        for line in COLOUR.sub("", self.log.read_text(errors="replace")).splitlines():
            if (stamp := STAMP.search(line)) and re.search(pattern, line):
                at = datetime.strptime(stamp.group(), "%Y-%m-%d %H:%M:%S,%f").timestamp()
                yield at - self.launched_at, line


def server_parser(description: str | None, port: int) -> argparse.ArgumentParser:
    """Options of a benchmark that starts a server: its checkpoint and, by default, this port."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    text = "folder with Cosmos3 weights, or demo (%(default)s)"
    parser.add_argument("--checkpoint", default=DEMO, type=lambda path: str(checkpoint_folder(path)), help=text)
    parser.add_argument("--port", type=int, default=port, help="where the server listens (%(default)s)")
    return parser


@contextmanager
def server(
    data_dir: Path,
    port: int,
    *,
    command: Sequence[str] = SERVE_RUN,
    log: Path | None = None,
    environment: Mapping[str, str] | None = None,
    patience_s: float = 180,
    **arguments: Any,
) -> Iterator[Server]:
    """deploy.yaml with other arguments, until the context ends.

    Args:
        data_dir: an existing folder for the job table and the videos.
        command: Python's arguments, before the deployment file.
        log: file for what it prints; None is ``log`` in ``data_dir``.
        environment: variables that its processes get besides this one's.
        patience_s: it must be ready by then.
        arguments: of the application, such as ``checkpoint``.
    """
    config = yaml.safe_load(Path("deploy.yaml").read_text())
    config["http_options"]["port"] = port
    config["applications"][0]["args"] |= arguments | {"data_dir": str(data_dir)}
    file = data_dir / "deploy.yaml"
    file.write_text(yaml.safe_dump(config))
    log, url = log or data_dir / "log", f"http://127.0.0.1:{port}"
    launched_at, start = time.time(), time.perf_counter()
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, *command, str(file)],
            stdout=output,
            stderr=output,
            env={**os.environ, **(environment or {})},
        )
    try:
        wait_until(lambda: _healthy(url, process), patience_s, period_s=0.1)
        yield Server(url, process, launched_at, time.perf_counter() - start, log)
    finally:
        _stop(process)


def wait_until(condition: Callable[[], bool], timeout_s: float, period_s: float = 0.02) -> None:
    """Look every ``period_s``."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError
        time.sleep(period_s)


def descendants(pid: int) -> dict[int, str]:
    """The processes that ``pid`` and its children started, with the first word of their command lines."""
    found = {}
    with contextlib.suppress(psutil.NoSuchProcess):
        for child in psutil.Process(pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):  # it ended meanwhile
                found[child.pid] = (child.cmdline() or [""])[0]
    return found


def _stop(process: "subprocess.Popen[bytes]") -> None:
    """End the server and whatever of it is left after ``LEAVING_S``."""
    family = descendants(process.pid)
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(LEAVING_S)
    with contextlib.suppress(TimeoutError):
        wait_until(lambda: not any(map(runs, family)), LEAVING_S, period_s=0.1)
    for pid in filter(runs, family):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.kill()
    process.wait()


def runs(pid: int) -> bool:
    """Whether the process is there; one that has ended and is not yet buried does not run."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _healthy(url: str, process: "subprocess.Popen[bytes]") -> bool:
    if process.poll() is not None:
        raise RuntimeError(f"the server ended with status {process.returncode} before it was ready")
    return is_healthy(url)


def is_healthy(url: str) -> bool:
    """Whether the server at ``url`` answers /health with 200."""
    try:
        return httpx.get(f"{url}/health", timeout=5).status_code == 200
    except httpx.TransportError:
        return False
