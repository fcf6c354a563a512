"""``cosmos3 serve`` as its user meets it: a real process with a Ray of its own, and what it prints."""

import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import psutil
import yaml
from paths import ROOT
from running_server import free_port, serve_config

START_S = 240  # where much else goes on
STOP_S = 120


class Launched:
    """A server, and all that it has started."""

    def __init__(self, folder: Path, checkpoint: Path, **args: Any) -> None:
        port, self.data = free_port(), folder / "data"
        self.url = f"http://127.0.0.1:{port}"
        config = yaml.safe_load(serve_config(8000, checkpoint, self.data))
        config["applications"][0]["args"] |= args
        (folder / "deploy.yaml").write_text(yaml.safe_dump(config))
        self._command = [sys.executable, "-m", "serve", "serve", str(folder / "deploy.yaml"), f"--port={port}"]
        self._log = folder / "log"
        self.start()

    def start(self) -> None:
        """Start it, once more after its end."""
        with self._log.open("w") as log:
            self.process = subprocess.Popen(self._command, cwd=ROOT, stdout=log, stderr=log)
        self.family: dict[int, psutil.Process] = {}

    @property
    def printed(self) -> str:
        return self._log.read_text()

    def wait_for(self, text: str, timeout_s: float = START_S) -> None:
        deadline = time.monotonic() + timeout_s
        while text not in self.printed:
            assert self.process.poll() is None, self.printed
            assert time.monotonic() < deadline, self.printed
            self._meet_family()
            time.sleep(0.1)

    def wait_for_end(self) -> int:
        """The exit status, once nothing is left of the server."""
        self._meet_family()
        status = self.process.wait(STOP_S)
        _, left = psutil.wait_procs(self.family.values(), timeout=10)
        assert not left, "processes outlive the server"
        return status

    def kill(self) -> None:
        """SIGKILL to all of it at the same moment, as when the machine loses its power."""
        self._meet_family()
        everything = [*self.family.values()]
        if self.process.poll() is None:
            everything.append(psutil.Process(self.process.pid))
        for action in (psutil.Process.suspend, psutil.Process.kill):
            for process in everything:
                with suppress(psutil.NoSuchProcess):
                    action(process)
        self.process.wait()

    def _meet_family(self) -> None:
        with suppress(psutil.NoSuchProcess):
            children = psutil.Process(self.process.pid).children(recursive=True)
            self.family |= {child.pid: child for child in children}


def submit(server: Launched, request: dict[str, Any], headers: dict[str, str] | None = None) -> str:
    response = httpx.post(f"{server.url}/v1/videos", json=request, headers=headers, timeout=60)
    assert response.status_code == 200, response.text
    video_id: str = response.json()["id"]
    return video_id


def wait_for_status(server: Launched, video_id: str, status: str) -> None:
    deadline = time.monotonic() + 60
    while httpx.get(f"{server.url}/v1/videos/{video_id}", timeout=30).json()["status"] != status:
        assert time.monotonic() < deadline
        time.sleep(0.02)
