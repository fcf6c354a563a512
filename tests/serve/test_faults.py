"""Any process may die at any moment: no job is lost, no video changes, nothing runs more often than it may."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from batch import JOBS, PICTURED, RECOVERY_S, REQUEST, Batch
from launched import Launched, submit, wait_for_status
from receiver import receiving
from running_server import WEBHOOK, WEBHOOK_PORT, Server, ray_process
from sample_requests import ENDLESS

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
    [
        "Tokenizer VideoEncoder VideoDecoder SoundDecoder",
        "Denoiser",
        "JobRunner",
        "Ingress",
        "ServeController",
        "ProxyActor",
    ],
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


@pytest.fixture(scope="module")
def whole_server(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path) -> Iterator[Launched]:
    """A server with a Ray of its own, all of whose processes can be killed at once."""
    launched = Launched(tmp_path_factory.mktemp("whole"), tiny_checkpoint)
    launched.wait_for("Ready at ")
    yield launched
    launched.kill()


@contextmanager
def command_line_client(url: str, out: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The client's process for the request of seed 0, which does not outlive the test."""
    fields = {name: value for name, value in REQUEST.items() if name not in ("prompt", "generate_sound")}
    options = [f"--{name.replace('_', '-')}={value}" for name, value in fields.items()]
    command = [sys.executable, "-m", "serve", "submit", str(REQUEST["prompt"]), "--sound", "--seed=0", *options]
    with subprocess.Popen([*command, f"--url={url}", f"--out={out}"], stderr=subprocess.PIPE) as process:
        try:
            yield process
        finally:
            process.kill()


def test_no_job_is_lost_when_the_whole_server_is_killed_and_started_again(
    whole_server: Launched, undisturbed: list[bytes], tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    blocking = submit(whole_server, ENDLESS)  # until the client, which takes a while to start, waits like the batch
    batch = Batch(whole_server.url)
    batch.submit(webhook_url=WEBHOOK)
    with command_line_client(whole_server.url, tmp_path / "client.mp4") as client:
        batch.wait_for_jobs(1 + JOBS + 1)
        httpx.delete(f"{whole_server.url}/v1/videos/{blocking}", timeout=60)
        batch.wait_for_step(PICTURED, 2)
        whole_server.kill()
        killed = time.monotonic()
        with receiving(port=WEBHOOK_PORT) as receiver:  # it was down before
            whole_server.start()
            whole_server.wait_for("Ready at ")
            records = batch.finish()
            took_s = time.monotonic() - killed
            _, told = client.communicate(timeout=RECOVERY_S)
            events = [request.event() for request in receiver.wait_for(JOBS)]
    assert {(event.type, event.data.id) for event in events} == {("video.completed", one["id"]) for one in records}
    assert [record["status"] for record in records] == ["completed"] * JOBS
    assert batch.videos() == undisturbed
    assert records[PICTURED]["attempts"] == 2, "it had begun with its picture when the server died"
    assert records[PICTURED]["input_reference"]["kind"] == "image"
    assert client.returncode == 0, told.decode()
    assert b"trying again" in told, "the client did not notice that the server was away"
    assert (tmp_path / "client.mp4").read_bytes() == undisturbed[0]
    again = sum(record["attempts"] > 1 for record in records)
    record_property(
        "fault",
        {"in flight": JOBS, "lost": 0, "changed": 0, "begun again": again, "all done after s": round(took_s, 1)},
    )


def test_a_second_ctrl_c_stops_at_once(whole_server: Launched) -> None:
    server = whole_server
    wait_for_status(server, submit(server, ENDLESS), "in_progress")
    server.process.send_signal(signal.SIGINT)
    server.wait_for("1 video is running; waiting up to 3600 s", 30)
    interrupted = time.monotonic()
    server.process.send_signal(signal.SIGINT)
    assert server.wait_for_end() == 0
    assert time.monotonic() - interrupted < 60, "the video takes minutes"
    assert server.printed.rstrip().endswith("Stopped at once.")
    assert "Traceback" not in server.printed
