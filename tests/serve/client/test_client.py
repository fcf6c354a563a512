"""``cosmos3 submit`` against the real server, and against one that misbehaves."""

import json
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import av
import httpx
import pytest
from click.testing import CliRunner, Result
from running_server import Server, free_port
from sample_media import clip, picture
from sample_requests import ENDLESS, PREVIEW_STEPS, REQUEST, WATCHED

from serve.cli.main import main
from serve.client import videos as remote
from serve.client.videos import Message, RemoteError, RemoteVideos, read_messages

SMALL = ["--size", "96x64", "--num-frames", "9", "--num-inference-steps", "4"]
LONG = ["--size", ENDLESS["size"], "--num-frames", str(ENDLESS["num_frames"]), "--num-inference-steps", "200"]


def start(url: str, *arguments: str) -> "subprocess.Popen[str]":
    """The client in a process of its own, for signals."""
    command = [sys.executable, "-m", "serve", "submit", "--url", url, *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def run(url: str, *arguments: str) -> Result:
    return CliRunner().invoke(main, ["submit", "--url", url, *arguments])


def newest(server: Server) -> dict[str, Any]:
    videos: list[dict[str, Any]] = httpx.get(f"{server.url}/v1/videos?limit=1", timeout=60).json()["data"]
    return videos[0] if videos else {"id": None, "stage": None}


def test_a_video_is_made_with_a_progress_bar_and_saved_as_the_server_has_it(server: Server, tmp_path: Path) -> None:
    out = tmp_path / "out.mp4"
    done = run(server.url, "a red ball", "--sound", "-o", str(out), *SMALL)
    assert done.exit_code == 0, done.stderr
    video = newest(server)
    assert done.stdout == f"{out}: 96x64, 9 frames, 24 fps, seed {video['seed']}\n"
    assert "denoiser, step 4 of 4" in done.stderr
    assert "100%" in done.stderr
    assert {name: video[name] for name in REQUEST} == REQUEST | {"seed": video["seed"]}
    content = httpx.get(f"{server.url}/v1/videos/{video['id']}/content", timeout=60).content
    assert out.read_bytes() == content
    with av.open(out) as file:
        assert [stream.type for stream in file.streams] == ["video", "audio"]
    assert list(out.parent.iterdir()) == [out]


def test_previews_are_saved_beside_the_video_until_that_is_there(server: Server, tmp_path: Path) -> None:
    out = tmp_path / "out.mp4"
    names = ("size", "num_frames", "num_inference_steps", "previews")
    options = [f"--{name.replace('_', '-')}={WATCHED[name]}" for name in names]
    done = run(server.url, "a red ball", "-o", str(out), *options)
    assert done.exit_code == 0, done.stderr
    shown = re.findall(rf"preview after step (\d+): {re.escape(str(tmp_path / 'out.preview.jpg'))}", done.stderr)
    assert shown
    assert set(map(int, shown)) <= set(PREVIEW_STEPS)
    assert list(tmp_path.iterdir()) == [out]


@pytest.mark.parametrize(
    ("option", "data", "kind"), [("--image", picture(), "image"), ("--video", clip(), "video")], ids=["picture", "clip"]
)
def test_a_video_starts_from_the_file_of_the_command_line(
    server: Server, tmp_path: Path, option: str, data: bytes, kind: str
) -> None:
    out, file = tmp_path / "out.mp4", tmp_path / "file"
    file.write_bytes(data)
    done = run(server.url, "a red ball", option, str(file), "--seed", "5", "-o", str(out), *SMALL)
    assert done.exit_code == 0, done.stderr
    reference = newest(server)["input_reference"]
    assert (reference["kind"], reference["width"], reference["height"]) == (kind, 64, 48)
    fields = {"prompt": "a red ball", "size": "96x64", "num_frames": "9", "num_inference_steps": "4", "seed": "5"}
    sync = httpx.post(f"{server.url}/v1/videos/sync", data=fields, files={"input_reference": data}, timeout=120)
    assert out.read_bytes() == sync.content


def test_a_refused_request_is_one_line_with_the_servers_words(server: Server, tmp_path: Path) -> None:
    done = run(server.url, "a red ball", "-o", str(tmp_path / "x.mp4"), "--num-frames", "10")
    assert done.exit_code == 1
    assert done.stderr.startswith("error: num_frames: got 10, expected 4k + 1 frames (nearest: 9 or 13)")
    assert done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_ctrl_c_deletes_the_job_and_frees_the_denoiser(server: Server, tmp_path: Path) -> None:
    before = newest(server)["id"]
    client = start(server.url, "a red ball", "-o", str(tmp_path / "x.mp4"), *LONG)
    deadline = time.monotonic() + 60
    while (video := newest(server))["id"] == before or video["stage"] != "denoiser":
        assert time.monotonic() < deadline
        time.sleep(0.1)
    client.send_signal(signal.SIGINT)
    _, stderr = client.communicate(timeout=30)
    assert client.returncode == 130, stderr
    assert stderr.endswith("cancelled\n")
    assert stderr.count("cancelled") == 1
    assert "Traceback" not in stderr
    assert httpx.get(f"{server.url}/v1/videos/{video['id']}", timeout=60).status_code == 404
    assert run(server.url, "a red ball", "-o", str(tmp_path / "y.mp4"), *SMALL).exit_code == 0
    assert list(tmp_path.iterdir()) == [tmp_path / "y.mp4"]


def test_a_server_that_is_not_there_is_said_at_once(tmp_path: Path) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    done = run(url, "a red ball", "-o", str(tmp_path / "x.mp4"))
    assert done.exit_code == 1
    assert done.stderr.startswith(f"error: cannot connect to {url}")


@pytest.mark.parametrize("url", ["nonsense", "http://127.0.0.1:port", "ftp://127.0.0.1"])
def test_a_url_that_is_none_is_one_line(url: str, tmp_path: Path) -> None:
    done = run(url, "a red ball", "-o", str(tmp_path / "x.mp4"))
    assert done.exit_code == 1
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("mistyped/x.mp4", "expected a file in a folder that exists, because there is no folder"),
        (".", "expected the name of a file, because this is a folder"),
    ],
)
def test_a_place_that_cannot_be_written_is_refused_before_anything_is_submitted(
    fake: "Fake", name: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # a longer name would be cut in the message
    done = run(fake.url, "a red ball", "-o", name)
    assert done.exit_code == 1
    assert done.stderr.startswith(f"error: --out: got {name!r}, {told}")
    assert done.stderr.count("\n") == 1
    assert not fake.asked
    assert not list(tmp_path.iterdir())


def test_events_are_read_whatever_else_the_stream_holds() -> None:
    stream = ": a comment\n\nid: 3\ndata: {}\n\nretry: 5\n\nevent: x\ndata:no space\n\ndata: cut short"
    assert list(read_messages(stream.split("\n"))) == [Message("3", "{}"), Message(None, "no space")]


class Fake(ThreadingHTTPServer):
    """A server that plays a script: what it answers next on each route, and what it was asked."""

    daemon_threads = True

    def __init__(self, script: dict[str, list[Any]]) -> None:
        super().__init__(("127.0.0.1", 0), FakeHandler)
        self.script = script
        self.asked: list[tuple[str, dict[str, str]]] = []
        self.clock: Clock | None = None
        self.url = f"http://127.0.0.1:{self.server_port}"


class FakeHandler(BaseHTTPRequestHandler):
    server: Fake

    def answer(self) -> None:
        """Send the next status, headers and body of this route; a status of None breaks the connection.

        A body of several parts takes two seconds of the client's clock, if the test has one.
        """
        self.rfile.read(int(self.headers.get("content-length", 0)))
        route = f"{self.command} {self.path}"
        self.server.asked.append((route, {name.lower(): value for name, value in self.headers.items()}))
        status, headers, body = self.server.script[route].pop(0)
        if status is None:
            return
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        for part in [body] if isinstance(body, bytes) else body:
            self.wfile.write(part)
            self.wfile.flush()
            if self.server.clock is not None and not isinstance(body, bytes):
                time.sleep(0.02)  # in which the client notes what was sent
                self.server.clock.sleep(2 / len(body))

    do_GET = do_POST = do_DELETE = answer

    def log_message(self, *_: Any) -> None:
        pass


def event(number: int, **fields: Any) -> bytes:
    return f"id: {number}\ndata: {json.dumps(fields)}\n\n".encode()


def answer(fields: dict[str, Any], status: int = 200, **headers: str) -> tuple[int, dict[str, str], bytes]:
    return status, {"content-type": "application/json", **headers}, json.dumps(fields).encode()


def refusal(message: str) -> dict[str, Any]:
    return {"error": {"message": message, "type": "x", "param": None, "code": "x"}}


STEP_1, STEP_2 = (
    event(1000 + step, type="progress", stage="denoiser", step=step, steps=2, progress=47 * step, eta_s=1)
    for step in (1, 2)
)
END = event(1999, type="completed", video={"id": "v", "size": "96x64", "num_frames": 9, "fps": 24, "seed": 1})
LOST = (None, {}, b"")
SUBMIT, EVENTS, CONTENT = "POST /v1/videos", "GET /v1/videos/v/events", "GET /v1/videos/v/content"


def good() -> dict[str, list[Any]]:
    return {SUBMIT: [answer({"id": "v"})], EVENTS: [(200, {}, STEP_1 + STEP_2 + END)], CONTENT: [(200, {}, b"mp4")]}


@pytest.fixture
def fake() -> Iterator[Fake]:
    with Fake(good()) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield server
        server.shutdown()


class Clock:
    """Time that passes only while the client sleeps, and while the server sends."""

    def __init__(self) -> None:
        self.slept: list[float] = []

    def monotonic(self) -> float:
        return sum(self.slept)

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(remote, "time", clock)
    return clock


@pytest.mark.usefixtures("clock")
def test_events_that_break_off_are_resumed_behind_the_last_one_seen(fake: Fake, tmp_path: Path) -> None:
    starting = (404, {"content-type": "text/plain"}, b"Path '/v1' not found")  # Serve's proxy before the app is there
    fake.script[EVENTS] = [(200, {}, STEP_1), starting, LOST, (200, {}, STEP_2 + END)]
    done = run(fake.url, "x", "-o", str(tmp_path / "x.mp4"))
    assert done.exit_code == 0, done.stderr
    assert [headers.get("last-event-id") for route, headers in fake.asked if route == EVENTS] == [None, *["1001"] * 3]
    assert "trying again in 1 s" in done.stderr
    assert (tmp_path / "x.mp4").read_bytes() == b"mp4"


def test_a_busy_server_is_waited_for_as_long_as_it_says(fake: Fake, clock: Clock, tmp_path: Path) -> None:
    busy = answer(refusal("as many videos wait as this server takes"), 429, **{"retry-after": "2"})
    fake.script[SUBMIT].insert(0, busy)
    done = run(fake.url, "x", "-o", str(tmp_path / "x.mp4"))
    assert done.exit_code == 0, done.stderr
    assert clock.slept == [2]
    assert "as many videos wait as this server takes; trying again in 2 s\n" in done.stderr


@pytest.mark.usefixtures("clock")
def test_a_lost_answer_is_asked_for_with_the_same_key(fake: Fake, tmp_path: Path) -> None:
    fake.script[SUBMIT].insert(0, LOST)
    assert run(fake.url, "x", "-o", str(tmp_path / "x.mp4")).exit_code == 0
    first, second = (headers["idempotency-key"] for route, headers in fake.asked if route == SUBMIT)
    assert first == second
    again = fake.script | good()
    fake.script = again
    assert run(fake.url, "x", "-o", str(tmp_path / "x.mp4")).exit_code == 0
    assert fake.asked[-3][1]["idempotency-key"] != first, "another run is another job"


@pytest.mark.usefixtures("clock")
def test_a_download_that_breaks_off_starts_again_and_leaves_no_part(fake: Fake, tmp_path: Path) -> None:
    fake.script[CONTENT] = [(200, {"content-length": "3"}, b"m"), (200, {"content-length": "3"}, b"mp4")]
    assert run(fake.url, "x", "-o", str(tmp_path / "x.mp4")).exit_code == 0
    assert [path.name for path in tmp_path.iterdir()] == ["x.mp4"]
    assert (tmp_path / "x.mp4").read_bytes() == b"mp4"


def test_a_failed_job_is_its_reason(fake: Fake, tmp_path: Path) -> None:
    video = {"error": {"code": "stage_failed", "message": "the denoiser failed"}}
    fake.script[EVENTS] = [(200, {}, event(1999, type="failed", video=video))]
    done = run(fake.url, "x", "-o", str(tmp_path / "x.mp4"))
    assert done.exit_code == 1
    assert done.stderr.endswith("error: the denoiser failed\n")


@pytest.fixture
def impatient(fake: Fake, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> RemoteVideos:
    """A client that gives a server up which is not heard of for a second."""
    fake.clock = clock
    monkeypatch.setattr(remote, "GIVE_UP_S", 1.0)
    monkeypatch.setattr(remote, "RETRY_S", 0.1)
    return RemoteVideos(fake.url)


DOWN = (502, {"content-type": "text/html"}, b"<h1>Bad gateway</h1>")
COMMENTS = [b": keep-alive\n\n"] * 10


@pytest.mark.parametrize("stream", [[STEP_1] * 10, COMMENTS], ids=["steps", "silence but for comments"])
def test_a_restart_is_outlasted_at_any_age_of_the_stream(
    fake: Fake, impatient: RemoteVideos, stream: list[bytes]
) -> None:
    fake.script[EVENTS] = [(200, {}, stream), LOST, DOWN, (200, {}, STEP_2 + END)]
    assert impatient.follow("v", lambda _: None)["type"] == "completed"
    assert len(fake.script[EVENTS]) == 0


def test_a_long_download_that_breaks_off_starts_again(fake: Fake, impatient: RemoteVideos, tmp_path: Path) -> None:
    broken = (200, {"content-length": "11"}, [b"x"] * 10)
    fake.script[CONTENT] = [broken, DOWN, (200, {}, b"mp4")]
    impatient.download("v", tmp_path / "x.mp4")
    assert (tmp_path / "x.mp4").read_bytes() == b"mp4"


@pytest.mark.parametrize("plain", [False, True], ids=["the server's", "its proxy's"])
def test_a_server_that_says_that_it_is_full_is_not_gone(fake: Fake, impatient: RemoteVideos, plain: bool) -> None:
    full = (
        (429, {}, b"Too many requests") if plain else answer(refusal("as many videos wait as this server takes"), 429)
    )
    fake.script[SUBMIT] = [full] * 20 + fake.script[SUBMIT]
    assert impatient.submit({"prompt": "x"}, "key") == "v"


def test_a_server_that_is_not_ready_is_there(fake: Fake, impatient: RemoteVideos) -> None:
    fake.script[EVENTS] = [answer(refusal("the database restarts"), 503)] * 20 + fake.script[EVENTS]
    assert impatient.follow("v", lambda _: None)["type"] == "completed"


def test_a_server_is_given_up_once_it_was_not_heard_of_for_long(
    fake: Fake, clock: Clock, impatient: RemoteVideos
) -> None:
    fake.script[EVENTS] = [(200, {}, [STEP_1] * 10), *[DOWN] * 100]
    with pytest.raises(RemoteError, match="502 Bad Gateway"):
        impatient.follow("v", lambda _: None)
    assert 2.7 < clock.monotonic() < 3.5


def test_a_client_that_is_closed_gives_up_without_another_try(fake: Fake) -> None:
    notices: list[str] = []
    client = RemoteVideos(fake.url, notice=notices.append)
    fake.script[EVENTS] = [(200, {}, [STEP_1] * 10)] * 2
    with pytest.raises(RemoteError, match="broke"):
        client.follow("v", lambda _: client.close())
    assert notices == []
    assert len(fake.script[EVENTS]) == 1


@pytest.mark.parametrize("how", ["argument", "environment"])
def test_the_key_goes_along(fake: Fake, how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if how == "environment":
        monkeypatch.setenv("COSMOS3_API_KEY", "secret")
    options = ["--api-key", "secret"] if how == "argument" else []
    assert run(fake.url, "x", "-o", str(tmp_path / "x.mp4"), *options).exit_code == 0
    assert {headers["authorization"] for _, headers in fake.asked} == {"Bearer secret"}


def test_ctrl_c_while_the_answer_is_on_its_way_leaves_no_job(fake: Fake, tmp_path: Path) -> None:
    busy = answer(refusal("busy"), 429, **{"retry-after": "60"})
    fake.script |= {SUBMIT: [busy, answer({"id": "v"})], "DELETE /v1/videos/v": [answer({"deleted": True})]}
    client = start(fake.url, "x", "-o", str(tmp_path / "x.mp4"))
    while not fake.asked:
        time.sleep(0.05)
    time.sleep(0.3)
    client.send_signal(signal.SIGINT)
    client.communicate(timeout=60)
    assert client.returncode == 130
    assert [route for route, _ in fake.asked] == [SUBMIT, SUBMIT, "DELETE /v1/videos/v"]
