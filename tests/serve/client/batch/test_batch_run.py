"""Batches against the real routes and the real job table: nothing is made twice, nothing is lost."""

import hashlib
import itertools
import json
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from pathlib import Path
from typing import Any

import fsspec
import httpx
import pytest
from local_api import MP4
from maker import FAILING, Maker, maker, resting_maker
from running_server import free_port
from sample_media import picture

from serve.client import batch
from serve.client.batch import InvalidBatch, Options, Report, Summary
from serve.client.batch.pace import FIRST_AHEAD, Pace
from serve.client.videos import RemoteError, RemoteVideos

SMALL = {"num_frames": 9, "size": "96x64"}
WAIT_S = 60


@pytest.fixture(scope="module")
def shared_maker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Maker]:
    with maker(tmp_path_factory.mktemp("server"), max_queued_jobs=6) as server:
        yield server


@pytest.fixture
def server(shared_maker: Maker) -> Iterator[Maker]:
    """A server that has room for six videos, and has none."""
    yield shared_maker
    shared_maker.may.set()
    shared_maker.pause_s, shared_maker.failing = 0.0, FAILING
    for video in videos(shared_maker):
        httpx.delete(f"{shared_maker.url}/v1/videos/{video['id']}", timeout=WAIT_S)
    shared_maker.jobs.clear()


def videos(server: Maker) -> list[dict[str, Any]]:
    """All that the server has, the oldest first."""
    listed: list[dict[str, Any]] = httpx.get(f"{server.url}/v1/videos?limit=100&order=asc", timeout=WAIT_S).json()[
        "data"
    ]
    return listed


class Said(Report):
    """Remembers what a batch said."""

    def __init__(self) -> None:
        self.lines: list[tuple[int, str]] = []
        self.notes: list[str] = []

    def invalid(self, line: int, problem: str) -> None:
        self.lines.append((line, problem))

    def failed(self, name: str, line: int, problem: str) -> None:  # noqa: ARG002
        self.lines.append((line, problem))

    def note(self, text: str) -> None:
        self.notes.append(text)


def write(folder: Path, *requests: dict[str, Any]) -> Path:
    file = folder / "prompts.jsonl"
    file.write_text("".join(f"{json.dumps(SMALL | request)}\n" for request in requests))
    return file


def balls(folder: Path, count: int, **fields: Any) -> Path:
    return write(folder, *({"prompt": f"ball {number}"} | fields for number in range(count)))


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def expected(count: int) -> set[str]:
    names = {f"{number:06d}.{end}" for number in range(1, count + 1) for end in ("mp4", "json")}
    return names | {"metadata.jsonl"}


def test_every_line_becomes_a_video_with_its_record(server: Maker, tmp_path: Path) -> None:
    summary = batch.run(balls(tmp_path, 12), tmp_path / "out", server.url)
    assert summary._replace(seconds=0) == Summary(12, 0, 12, 0, 0)
    assert summary.complete
    assert files(tmp_path / "out") == expected(12)
    rows = [json.loads(line) for line in (tmp_path / "out/metadata.jsonl").read_text().splitlines()]
    assert [row["prompt"] for row in rows] == [f"ball {number}" for number in range(12)]
    for row in rows:
        data = (tmp_path / "out" / row["file_name"]).read_bytes()
        assert data == MP4 + str(row["seed"]).encode()
        assert hashlib.sha256(data).hexdigest() == row["sha256"]
    assert [job.params["prompt"] for job in server.jobs] == [row["prompt"] for row in rows], "in the file's order"


@pytest.mark.parametrize("out", ["out", "memory://batch"])
def test_a_second_run_finds_everything_and_makes_nothing(server: Maker, tmp_path: Path, out: str) -> None:
    out = out if "://" in out else str(tmp_path / out)
    file = balls(tmp_path, 5)
    batch.run(file, out, server.url)
    filesystem, root = fsspec.url_to_fs(out)
    filesystem.rm(f"{root}/000002.mp4")
    filesystem.rm(f"{root}/metadata.jsonl")
    assert batch.run(file, out, server.url)[1:4] == (4, 1, 0)
    assert len(server.jobs) == 5, "the server still has the video that was gone"
    assert len(filesystem.cat_file(f"{root}/metadata.jsonl").splitlines()) == 5
    assert batch.run(file, out, server.url)[1:4] == (5, 0, 0)
    filesystem.rm(root, recursive=True)


def test_a_full_queue_is_kept_full_and_asked_one_request_at_a_time(
    server: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others have left three places of the queue, fewer than a batch begins with."""
    server.may.clear()
    for number in range(3):
        httpx.post(f"{server.url}/v1/videos", json={"prompt": f"of others {number}"} | SMALL, timeout=WAIT_S)
    refused: list[RemoteError] = []
    wait = Pace.refused

    def note(pace: Pace, error: RemoteError) -> None:
        if not refused:
            assert len(videos(server)) == 6
            server.may.set()
        refused.append(error)
        wait(pace, error)

    monkeypatch.setattr(Pace, "refused", note)
    assert batch.run(balls(tmp_path, 20), tmp_path / "out", server.url).complete
    assert 1 <= len(refused) < 10
    assert "as many videos wait as this server takes" in str(refused[0])


def test_all_invalid_lines_are_named_and_nothing_is_started(server: Maker, tmp_path: Path) -> None:
    said = Said()
    file = write(tmp_path, {"prompt": "x"}, {"prompt": "x", "num_frames": 10}, {"name": "000001", "prompt": "x"}, {})
    with file.open("a") as opened:
        opened.write("no JSON\n")
    with pytest.raises(InvalidBatch, match="4 of 5 lines are invalid; nothing was started"):
        batch.run(file, tmp_path / "out", server.url, report=said)
    assert [line for line, _ in said.lines] == [2, 3, 4, 5]
    assert said.lines[1][1].startswith("name: got '000001', expected a new name, because line 1 has it")
    assert videos(server) == []
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (Options(repeat=0), "repeat: got 0, expected 1 or more"),
        (Options(repeat=2, seeds=(1,)), "expected one of the two"),
        (Options(seeds=(1, 1)), r"seeds: got \[1, 1\], expected different numbers"),
        (Options(seeds=(-1,)), "expected different numbers from 0 to 4294967295"),
    ],
)
def test_an_invalid_option_is_refused(options: Options, told: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidBatch, match=told):
        batch.run(balls(tmp_path, 1), tmp_path / "out", options=options)


def test_an_empty_file_is_a_mistake(server: Maker, tmp_path: Path) -> None:
    with pytest.raises(InvalidBatch, match="no request"):
        batch.run(balls(tmp_path, 0), tmp_path / "out", server.url)


def test_a_changed_line_does_not_replace_its_earlier_video(server: Maker, tmp_path: Path) -> None:
    batch.run(balls(tmp_path, 2), tmp_path / "out", server.url)
    file = write(tmp_path, {"prompt": "another ball"}, {"prompt": "ball 1"})
    with pytest.raises(InvalidBatch, match=r"line 1: 000001\.json in .* or the line has changed"):
        batch.run(file, tmp_path / "out", server.url)
    assert len(server.jobs) == 2


def test_a_server_that_is_not_there_is_said_at_once(tmp_path: Path) -> None:
    start = time.monotonic()
    with pytest.raises(RemoteError, match="cannot connect"):
        batch.run(balls(tmp_path, 1), tmp_path / "out", f"http://127.0.0.1:{free_port()}")
    assert time.monotonic() - start < 10


def test_a_video_starts_from_the_file_beside_the_batch(server: Maker, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(picture())
    file = write(tmp_path, {"prompt": "x", "input_reference": "a.png"}, {"prompt": "y", "num_frames": 1, "name": "y"})
    assert batch.run(file, tmp_path / "out", server.url).complete
    assert files(tmp_path / "out") == {"000001.mp4", "000001.json", "y.png", "y.json", "metadata.jsonl"}
    record = json.loads((tmp_path / "out/000001.json").read_text())
    sha256 = hashlib.sha256(picture()).hexdigest()
    assert record["request"]["input_reference"] == {"file": "a.png", "sha256": sha256}
    assert record["video"]["input_reference"]["kind"] == "image"


def test_each_seed_is_a_video(server: Maker, tmp_path: Path) -> None:
    options = Options(seeds=(3, 5), shuffle=True)
    assert batch.run(balls(tmp_path, 3), tmp_path / "out", server.url, options=options).made == 6
    seeds = {job.params["seed"] for job in server.jobs}
    assert seeds == {3, 5}
    assert {"000001-seed3.mp4", "000003-seed5.mp4"} < files(tmp_path / "out")


def test_what_failed_is_made_again_by_the_next_run(server: Maker, tmp_path: Path) -> None:
    said = Said()
    file = write(tmp_path, {"prompt": "ball"}, {"prompt": f"it {FAILING}"}, {"prompt": "star"})
    first = batch.run(file, tmp_path / "out", server.url, report=said)
    assert (first.made, first.failed, first.complete) == (2, 1, False)
    assert said.lines == [(2, "the denoiser failed")]
    assert len((tmp_path / "out/metadata.jsonl").read_text().splitlines()) == 2
    server.failing = "nothing"
    second = batch.run(file, tmp_path / "out", server.url)
    assert (second.found, second.made, second.failed) == (2, 1, 0)
    assert len(videos(server)) == 3, "the failed job is gone"


def test_too_many_failures_end_the_batch(server: Maker, tmp_path: Path) -> None:
    said = Said()
    file = balls(tmp_path, 30, prompt=FAILING)
    summary = batch.run(file, tmp_path / "out", server.url, options=Options(max_failures=2), report=said)
    assert (summary.made, summary.failed) == (0, 3)
    assert said.notes == ["3 videos have failed, which ends the batch"]
    assert len(server.jobs) < 20


def test_a_refusal_by_the_server_is_a_failure_of_its_line(server: Maker, tmp_path: Path) -> None:
    said = Said()
    file = write(tmp_path, {"prompt": "x", "input_reference": {"file_id": "video_unknown"}}, {"prompt": "y"})
    assert batch.run(file, tmp_path / "out", server.url, report=said)[1:4] == (0, 1, 1)
    assert "expected a finished video of this server" in said.lines[0][1]


def test_what_the_disk_refuses_ends_the_batch(server: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("serve.client.batch.output.Output.save", full)
    with pytest.raises(OSError, match="No space left"):
        batch.run(balls(tmp_path, 30), tmp_path / "out", server.url)
    assert len(server.jobs) < 30


def test_a_list_that_cannot_be_written_does_not_hide_what_ended_the_batch(
    server: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    def away(*_: Any) -> None:
        raise OSError("the store is away")

    monkeypatch.setattr("serve.client.batch.output.Output.save", full)
    monkeypatch.setattr("serve.client.batch.output.Output.write_list", away)
    with pytest.raises(OSError, match="No space left"):
        batch.run(balls(tmp_path, 2), tmp_path / "out", server.url)


def test_a_download_that_outlasts_the_batch_does_not_hide_its_error(
    server: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    temporary, ended, outlasting = tmp_path / "tmp", threading.Event(), threading.Lock()
    download = RemoteVideos.download

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    def first_outlasts(client: RemoteVideos, video_id: str, file: Path) -> Any:
        if outlasting.acquire(blocking=False):
            for number in itertools.takewhile(lambda _: not ended.is_set(), itertools.count()):
                (file.parent / str(number)).touch()
        return download(client, video_id, file)

    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    monkeypatch.setattr(RemoteVideos, "download", first_outlasts)
    monkeypatch.setattr("serve.client.batch.output.Output.save", full)
    with pytest.raises(OSError, match="No space left"):
        batch.run(balls(tmp_path, 30), tmp_path / "out", server.url)
    ended.set()
    wait_until(lambda: not files(temporary))


def start(server: Maker, file: Path, out: Path) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "serve", "batch", str(file), "--out", str(out), "--url", server.url]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM], ids=lambda how: how.name)
def test_a_stopped_batch_takes_back_what_has_not_started(server: Maker, tmp_path: Path, how: signal.Signals) -> None:
    server.may.clear()
    file, out = balls(tmp_path, 8), tmp_path / "out"
    client = start(server, file, out)
    wait_until(lambda: len(videos(server)) == FIRST_AHEAD)
    client.send_signal(how)
    _, stderr = client.communicate(timeout=WAIT_S)
    assert client.returncode == 130
    assert stderr == "8 videos, 0 of them there already\nstopped; run the command again to go on\n"
    assert videos(server) == []
    server.may.set()
    assert batch.run(file, out, server.url).made == 8
    assert len(server.jobs) == 8


def test_a_batch_that_is_killed_three_times_makes_every_video_once(server: Maker, tmp_path: Path) -> None:
    server.pause_s = 0.05
    file, out = balls(tmp_path, 40), tmp_path / "out"
    for rest in (8, 18, 28):
        client = start(server, file, out)
        wait_until(lambda rest=rest: len([*out.glob("*.json")]) >= rest)
        client.kill()
        client.communicate()
    summary = batch.run(file, out, server.url)
    assert summary.complete
    assert summary.found >= 28, "what earlier runs had saved"
    assert sorted(job.params["prompt"] for job in server.jobs) == sorted(f"ball {number}" for number in range(40))
    assert {name for name in files(out) if not name.endswith(".part")} == expected(40)
    rows = [json.loads(line) for line in (out / "metadata.jsonl").read_text().splitlines()]
    assert len({row["sha256"] for row in rows}) == 40


def test_a_restart_of_the_server_is_outlasted_and_noted_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(import_module("serve.client.batch.run"), "NOTICE_PERIOD_S", 1000)
    said = Said()
    with resting_maker(tmp_path / "server") as server, ThreadPoolExecutor(1) as aside:
        server.may.clear()
        with server.listening():
            running = aside.submit(batch.run, balls(tmp_path, 8), tmp_path / "out", server.url, report=said)
            wait_until(lambda: len(videos(server)) == FIRST_AHEAD)
        wait_until(lambda: said.notes)
        time.sleep(1.5)  # all connections were tried again
        with server.listening():
            server.may.set()
            assert running.result(WAIT_S).complete
        assert len(server.jobs) == 8
    assert len(said.notes) == 1
    assert said.notes[0].endswith("; trying again in 1 s")
