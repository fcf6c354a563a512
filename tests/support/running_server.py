"""A server that tests have started: its configuration, its processes and its jobs."""

import socket
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import yaml
from paths import ROOT
from ray import serve
from ray.serve.handle import DeploymentHandle
from receiver import webhook_args


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def reserved_port() -> "tuple[socket.socket, int]":
    """A port where nothing listens, and the socket that keeps it from everything but a listener of the tests."""
    holder = socket.socket()
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    holder.bind(("127.0.0.1", 0))
    return holder, holder.getsockname()[1]


LEASE_S = 3  # of the tests' servers: a job whose runner died is taken up so much later
WEBHOOK_HOLDER, WEBHOOK_PORT = reserved_port()
WEBHOOK = f"http://127.0.0.1:{WEBHOOK_PORT}"  # where they may send events


@dataclass(frozen=True)
class Server:
    """A running ``serve run deploy.yaml``."""

    url: str

    @property
    def handle(self) -> DeploymentHandle[Any]:
        return serve.get_app_handle("cosmos3")

    def process(self, deployment: str) -> psutil.Process:
        """The process of a deployment's only replica."""
        return ray_process(f"ray::ServeReplica:cosmos3:{deployment}")


def ray_process(name: str) -> psutil.Process:
    """A process of this test run's cluster, once there is one; a neighbour's cluster has the same names."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        for process in psutil.Process().children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                if name in " ".join(process.cmdline()):
                    return process
        time.sleep(0.1)
    raise TimeoutError(f"no process {name}")


def serve_config(port: int, checkpoint: Path, data_dir: Path) -> str:
    """deploy.yaml as it stands but for what tests must set."""
    config = yaml.safe_load((ROOT / "deploy.yaml").read_text())
    config["http_options"]["port"] = port
    args = {"checkpoint": str(checkpoint), "data_dir": str(data_dir), "lease_s": LEASE_S}
    config["applications"][0]["args"] |= args | webhook_args(data_dir.parent, WEBHOOK)
    return yaml.safe_dump(config)


def program(name: str) -> str:
    """A command that is installed beside this Python."""
    return str(Path(sys.executable).parent / name)


def is_healthy(server: Server) -> bool:
    """Whether /health says 200."""
    try:
        return httpx.get(f"{server.url}/health", timeout=5).status_code == 200
    except httpx.TransportError:
        return False


def wait_until_healthy(server: Server, process: "subprocess.Popen[bytes]", log: Path, timeout_s: float = 240) -> None:
    """Wait for /health to say 200."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline and process.poll() is None:
        if is_healthy(server):
            return
        time.sleep(0.2)
    raise TimeoutError(f"the server is not healthy; its log ends with\n{log.read_text()[-4000:]}")


def job_record(server_url: str, job: str) -> dict[str, Any] | None:
    """A job's record; None while the server does not answer. That it does not know the job is an error."""
    try:
        response = httpx.get(f"{server_url}/v1/videos/{job}", timeout=10)
    except httpx.TransportError:
        return None
    assert response.status_code != 404, "a job is lost"
    record: dict[str, Any] | None = response.json() if response.status_code == 200 else None
    return record


def ended_job(server_url: str, job: str, deadline: float) -> dict[str, Any]:
    """Its record once it has ended, whatever dies meanwhile; by ``deadline`` of the monotonic clock."""
    while not (record := job_record(server_url, job)) or record["status"] not in ("completed", "failed"):
        assert time.monotonic() < deadline, record
        time.sleep(0.1)
    return record
