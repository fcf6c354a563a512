"""``cosmos3 serve`` as its user meets it: a real process, real signals, what it prints and what it leaves behind."""

import shutil
import signal
import socket
import sqlite3
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from answers import check_error
from click.testing import CliRunner, Result
from fake_hub import REPOSITORY, fake_hub
from launched import START_S, STOP_S, Launched, submit, wait_for_status
from paths import ROOT

from benchmarks.otlp import Collector, Span, collecting
from cosmos3_models.checkpoint.folder import DEMO_FOLDER
from serve.cli.main import main
from serve.cli.serve import SEVERAL_MACHINES

TRACE, CLIENT_SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
TRACED = {"traceparent": f"00-{TRACE}-{CLIENT_SPAN}-01"}
CALLS = ("Denoiser denoise", "Tokenizer encode", "VideoDecoder decode")
OURS = ("job", "job queue", "tokenizer", "denoiser", "steps 1 to 1", "decoders", "mux", "storing")
EXPECTED_SPANS = {
    "proxy_http_request Ingress POST /v1/videos",
    *OURS,
    *(f"replica_handle_request {call}" for call in CALLS),
}

SHORT = {"prompt": "a ball", "size": "192x128", "num_frames": 9, "num_inference_steps": 150}


@pytest.fixture
def collector() -> Iterator[Collector]:
    with collecting() as opened:
        yield opened


@pytest.fixture
def launch(tiny_checkpoint: Path, tmp_path: Path) -> Iterator[Callable[..., Launched]]:
    launched: list[Launched] = []

    def start(checkpoint: Path = tiny_checkpoint, **args: Any) -> Launched:
        launched.append(Launched(tmp_path, checkpoint, **args))
        return launched[-1]

    yield start
    for server in launched:
        server.kill()


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


def test_a_port_that_is_taken_is_refused_before_ray_starts(
    in_this_process: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.executable", shutil.which("true"))  # the check of the checkpoint finds nothing
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


def are_complete(spans: list[Span]) -> bool:
    """Whether all are there, below the client's span."""
    return {one.parent for one in spans} - {one.id for one in spans} == {CLIENT_SPAN} and (
        {one.name for one in spans} >= EXPECTED_SPANS
    )


def test_a_model_on_the_hub_is_downloaded_once_and_served_with_traces_of_its_jobs(
    launch: Callable[..., Launched], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, collector: Collector
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "200")  # milliseconds
    with fake_hub(Path(shutil.copytree(DEMO_FOLDER, tmp_path / "hub"))) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
        server = launch(Path(REPOSITORY))
        server.wait_for("Ready at ")
        weights = "transformer/diffusion_pytorch_model.safetensors"
        header = 100_001  # of which the check reads so much
        assert hub.read[weights] == (DEMO_FOLDER / weights).stat().st_size + header
    (card,) = httpx.get(f"{server.url}/v1/models", timeout=60).json()["data"]
    assert card["id"] == REPOSITORY
    video_id = submit(server, SHORT | {"num_inference_steps": 1}, TRACED)
    spans = collector.trace(TRACE, are_complete)
    (job,) = (one for one in spans if one.name == "job")
    assert (job.service, job.attributes["video_id"], job.failed) == ("cosmos3", video_id, False)
    assert job.attributes["request_id"] == httpx.get(f"{server.url}/v1/videos/{video_id}").json()["request_id"]
