"""Any process may die at any moment: no job is lost, no video changes, nothing runs more often than it may."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from batch import JOBS, RECOVERY_S, REQUEST, Batch
from running_server import Server, free_port, ray_process, serve_config, wait_until_healthy

pytestmark = pytest.mark.faults


@pytest.fixture(scope="module")
def undisturbed(server: Server) -> list[bytes]:
    """The videos of the batch when nothing dies."""
    batch = Batch(server.url)
    batch.submit()
    assert all(record["attempts"] == 1 for record in batch.finish())
    videos = batch.videos()
    batch.delete()
    assert len(set(videos)) == JOBS
    return videos


@pytest.mark.parametrize(
    "victims",
    ["Tokenizer VideoDecoder SoundDecoder", "Denoiser", "JobRunner", "Ingress", "ServeController", "ProxyActor"],
)
def test_no_job_is_lost_when_a_process_dies(
    server: Server, undisturbed: list[bytes], victims: str, record_property: Callable[[str, object], None]
) -> None:
    batch = Batch(server.url)
    batch.submit()
    batch.wait_for_step(1, 2)  # one is done or decodes, one denoises, one waits
    for victim in victims.split():
        serves_own = victim in ("ServeController", "ProxyActor")
        (ray_process(f"ray::{victim}") if serves_own else server.process(victim)).kill()
    killed = time.monotonic()
    records = batch.finish()
    took_s = time.monotonic() - killed
    assert [record["status"] for record in records] == ["completed"] * JOBS
    assert all(record["attempts"] <= 2 for record in records)
    assert batch.videos() == undisturbed
    batch.delete()
    again = sum(record["attempts"] > 1 for record in records)
    record_property(
        "fault",
        {"in flight": JOBS, "lost": 0, "changed": 0, "begun again": again, "all done after s": round(took_s, 1)},
    )


class WholeServer:
    """``serve run`` with a Ray of its own, all of whose processes can be killed at once."""

    def __init__(self, folder: Path, checkpoint: Path) -> None:
        self._folder = folder
        self._port = free_port()
        self.url = f"http://127.0.0.1:{self._port}"
        (folder / "deploy.yaml").write_text(serve_config(self._port, checkpoint, folder / "data"))

    def start(self) -> None:
        start = (
            "import sys, ray\nfrom ray.serve.scripts import cli\n"
            "ray.init(address='local', num_cpus=4, include_dashboard=False)\n"
            "cli(['run', sys.argv[1]])"
        )
        with (self._folder / "log").open("a") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-c", start, str(self._folder / "deploy.yaml")], stdout=log, stderr=log
            )
        wait_until_healthy(Server(self.url), self._process, self._folder / "log")

    def kill(self) -> None:
        """SIGKILL to the driver and to everything that it started, as when the machine loses its power."""
        everything = [*psutil.Process(self._process.pid).children(recursive=True), psutil.Process(self._process.pid)]
        for process in everything:
            process.suspend()
        for process in everything:
            os.kill(process.pid, signal.SIGKILL)
        self._process.wait()


@pytest.fixture
def whole_server(tmp_path: Path, tiny_checkpoint: Path) -> Iterator[WholeServer]:
    started = WholeServer(tmp_path, tiny_checkpoint)
    started.start()
    yield started
    started.kill()


def command_line_client(url: str, out: Path) -> subprocess.Popen[bytes]:
    """The client's process for the request of seed 0."""
    fields = {name: value for name, value in REQUEST.items() if name not in ("prompt", "generate_sound")}
    options = [f"--{name.replace('_', '-')}={value}" for name, value in fields.items()]
    command = [sys.executable, "-m", "serve", "submit", str(REQUEST["prompt"]), "--sound", "--seed=0", *options]
    return subprocess.Popen([*command, f"--url={url}", f"--out={out}"], stderr=subprocess.PIPE)


def test_no_job_is_lost_when_the_whole_server_is_killed_and_started_again(
    whole_server: WholeServer, undisturbed: list[bytes], tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    batch = Batch(whole_server.url)
    batch.submit()
    batch.wait_for_step(0, 1)
    client = command_line_client(whole_server.url, tmp_path / "client.mp4")
    batch.wait_for_jobs(JOBS + 1)
    batch.wait_for_step(1, 2)
    whole_server.kill()
    killed = time.monotonic()
    whole_server.start()
    records = batch.finish()
    took_s = time.monotonic() - killed
    assert [record["status"] for record in records] == ["completed"] * JOBS
    assert batch.videos() == undisturbed
    _, told = client.communicate(timeout=RECOVERY_S)
    assert client.returncode == 0, told.decode()
    assert b"trying again" in told, "the client did not notice that the server was away"
    assert (tmp_path / "client.mp4").read_bytes() == undisturbed[0]
    again = sum(record["attempts"] > 1 for record in records)
    record_property(
        "fault",
        {"in flight": JOBS, "lost": 0, "changed": 0, "begun again": again, "all done after s": round(took_s, 1)},
    )
