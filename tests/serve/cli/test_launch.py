"""``cosmos3 serve`` as its user meets it: a real process, real signals, what it prints and what it leaves behind."""

import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import yaml
from answers import check_error
from click.testing import CliRunner, Result
from paths import ROOT
from running_server import free_port, serve_config

from serve.cli.main import main
from serve.cli.serve import SEVERAL_MACHINES

START_S = 240  # where much else goes on
STOP_S = 120
SHORT = {"prompt": "a ball", "size": "192x128", "num_frames": 9, "num_inference_steps": 60}
LONG = SHORT | {"size": "512x384", "num_frames": 65, "num_inference_steps": 200}


class Launched:
    """A server, and all that it has started."""

    def __init__(self, folder: Path, checkpoint: Path, **args: Any) -> None:
        port, self.data = free_port(), folder / "data"
        self.url = f"http://127.0.0.1:{port}"
        config = yaml.safe_load(serve_config(8000, checkpoint, self.data))
        config["applications"][0]["args"] |= args
        (folder / "deploy.yaml").write_text(yaml.safe_dump(config))
        command = [sys.executable, "-m", "serve", "serve", str(folder / "deploy.yaml"), f"--port={port}"]
        self._log = folder / "log"
        with self._log.open("w") as log:
            self.process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)
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
        self._meet_family()
        self.process.kill()
        for process in self.family.values():
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self.process.wait()

    def _meet_family(self) -> None:
        with suppress(psutil.NoSuchProcess):
            children = psutil.Process(self.process.pid).children(recursive=True)
            self.family |= {child.pid: child for child in children}


@pytest.fixture
def launch(tiny_checkpoint: Path, tmp_path: Path) -> Iterator[Callable[..., Launched]]:
    launched: list[Launched] = []

    def start(checkpoint: Path = tiny_checkpoint, **args: Any) -> Launched:
        launched.append(Launched(tmp_path, checkpoint, **args))
        return launched[-1]

    yield start
    for server in launched:
        server.kill()


def submit(server: Launched, request: dict[str, Any]) -> str:
    response = httpx.post(f"{server.url}/v1/videos", json=request, timeout=60)
    assert response.status_code == 200, response.text
    video_id: str = response.json()["id"]
    return video_id


def wait_for_status(server: Launched, video_id: str, status: str) -> None:
    deadline = time.monotonic() + 60
    while httpx.get(f"{server.url}/v1/videos/{video_id}", timeout=30).json()["status"] != status:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def jobs(server: Launched) -> dict[str, tuple[str, int]]:
    """Status and attempts of every job of a stopped server."""
    with closing(sqlite3.connect(server.data / "jobs.sqlite")) as database:
        return {row[0]: (row[1], row[2]) for row in database.execute("select id, status, attempts from jobs")}


def health_while_starting(server: Launched) -> list[tuple[float, httpx.Response]]:
    """Every answer of /health up to the first 200, with its seconds."""
    answers: list[tuple[float, httpx.Response]] = []
    while not answers or answers[-1][1].status_code != 200:
        assert server.process.poll() is None, server.printed
        start = time.monotonic()
        with suppress(httpx.TransportError):  # until there is a proxy
            answers.append((time.monotonic() - start, httpx.get(f"{server.url}/health", timeout=START_S)))
        time.sleep(0.1)
    return answers


def test_sigterm_lets_what_is_being_made_finish_and_takes_nothing_new(launch: Callable[..., Launched]) -> None:
    server = launch(longest_request_s=300)
    *early, _ = health_while_starting(server)
    messages = [check_error(answer, 503, "not_ready")["message"] for _, answer in early]
    assert any("Denoiser" in message for message in messages), messages
    assert all(message.startswith("not ready: ") for message in messages), messages
    assert all(answer.headers["x-request-id"] for _, answer in early)
    server.wait_for("Ready at ")
    assert f"Ready at {server.url} after " in server.printed

    with ThreadPoolExecutor(1) as aside:
        running = submit(server, SHORT)
        wait_for_status(server, running, "in_progress")
        sync = aside.submit(httpx.post, f"{server.url}/v1/videos/sync", json=SHORT, timeout=STOP_S)
        waiting = [submit(server, SHORT) for _ in range(4)]
        server.process.send_signal(signal.SIGTERM)
        server.wait_for("videos are running; waiting up to 300 s", 30)
        for route in ("/v1/videos", "/v1/videos/sync"):
            refused = httpx.post(f"{server.url}{route}", json=SHORT, timeout=30)
            assert "the server is stopping" in check_error(refused, 503, "not_ready")["message"]
        assert "the server is stopping" in httpx.get(f"{server.url}/health", timeout=30).text
        assert httpx.get(f"{server.url}/v1/videos/{running}", timeout=30).status_code == 200
        assert server.wait_for_end() == 0
        assert sync.result().status_code == 200
        assert sync.result().content[4:8] == b"ftyp"
    ended = jobs(server)
    assert ended[running] == ("completed", 1)
    assert ended[waiting[-1]] == ("queued", 0)
    assert {status for status, _ in ended.values()} == {"completed", "queued"}, "none is cut off"
    assert server.printed.rstrip().endswith("Stopped.")
    assert "Traceback" not in server.printed


def test_a_second_ctrl_c_stops_at_once(launch: Callable[..., Launched]) -> None:
    server = launch()
    server.wait_for("Ready at ")
    wait_for_status(server, submit(server, LONG), "in_progress")
    server.process.send_signal(signal.SIGINT)
    server.wait_for("1 video is running; waiting up to 3600 s", 30)
    interrupted = time.monotonic()
    server.process.send_signal(signal.SIGINT)
    assert server.wait_for_end() == 0
    assert time.monotonic() - interrupted < 60, "the video takes minutes"
    assert server.printed.rstrip().endswith("Stopped at once.")
    assert "Traceback" not in server.printed


def test_a_stage_that_fails_while_it_starts_ends_the_server_with_one_sentence(
    launch: Callable[..., Launched], tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    server = launch(data_dir=str(tmp_path / "file" / "folder"))
    told = ""
    while server.process.poll() is None:
        with suppress(httpx.TransportError):
            told += httpx.get(f"{server.url}/health", timeout=START_S).text
        time.sleep(0.2)
    assert server.wait_for_end() == 1
    *_, last = server.printed.splitlines()
    assert last.startswith("The server cannot start. JobRunner: NotADirectoryError: ")
    assert "JobRunner: NotADirectoryError: " in told


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Result]]:
    """Calls the command here; it must not end the Ray that other tests use, and its signal handlers do not stay."""
    monkeypatch.setattr("serve.cli.launch._end", lambda *_: None)
    monkeypatch.setenv(SEVERAL_MACHINES, "0")
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield lambda *arguments: CliRunner().invoke(main, ["serve", *map(str, arguments)])
    for number, handler in handlers.items():
        signal.signal(number, handler)


def test_a_broken_checkpoint_is_refused_before_ray_starts(
    in_this_process: Callable[..., Result], tiny_checkpoint: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    broken = Path(shutil.copytree(tiny_checkpoint, tmp_path / "broken"))
    for weights in (broken / "vae").glob("*.safetensors*"):
        weights.unlink()
    done = in_this_process(ROOT / "deploy.yaml", f"--checkpoint={broken}")
    assert (done.exit_code, done.output) == (1, "")
    assert capfd.readouterr().err == f"{ROOT / 'deploy.yaml'}: {broken / 'vae'}: no safetensors file in this folder\n"


def test_a_port_that_is_taken_is_refused_before_ray_starts(in_this_process: Callable[..., Result]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        done = in_this_process(ROOT / "deploy.yaml", f"--port={port}")
    assert done.exit_code == 1
    assert done.stdout.startswith(f"The server cannot start. http_options: got port {port} of ")
    assert "Starting Ray" not in done.stdout


def test_a_file_that_is_not_there_is_refused_with_the_usage(in_this_process: Callable[..., Result]) -> None:
    done = in_this_process("nowhere.yaml")
    assert done.exit_code == 2
    assert "'nowhere.yaml' does not exist" in done.stderr
