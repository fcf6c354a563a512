"""``cosmos3 batch`` as its user meets it: options, what it prints and how it ends."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result
from maker import FAILING, Maker, maker
from running_server import free_port

from serve.cli import batch as command_line
from serve.cli.batch import Progress, Seeds
from serve.cli.main import main
from serve.client.batch import Summary


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Maker]:
    with maker(tmp_path_factory.mktemp("server")) as server:
        yield server


def run(url: str, folder: Path, *requests: Any, options: tuple[str, ...] = ()) -> Result:
    (folder / "prompts.jsonl").write_text("".join(f"{json.dumps(request)}\n" for request in requests))
    arguments = ["batch", str(folder / "prompts.jsonl"), "--out", str(folder / "out"), "--url", url, *options]
    return CliRunner().invoke(main, arguments)


def test_a_batch_says_how_far_it_is_and_how_it_ended(server: Maker, tmp_path: Path) -> None:
    done = run(server.url, tmp_path, "a red ball", "a blue ball", options=("--repeat", "2"))
    assert done.exit_code == 0, done.stderr
    first, second = done.stderr.splitlines()
    assert first == "4 videos, 0 of them there already"
    assert second.startswith("1 of 4 videos, ")
    assert second.endswith(" left")
    assert f"4 of 4 videos are in {tmp_path / 'out'}: 0 were there, 4 made, 0 failed in 00:0" in done.stdout
    assert " videos/hour)" in done.stdout
    again = run(server.url, tmp_path, "a red ball", "a blue ball", options=("--repeat", "2"))
    assert again.stdout.startswith(f"4 of 4 videos are in {tmp_path / 'out'}: 4 were there, 0 made, 0 failed in 00:0")


def test_missing_videos_are_an_exit_status(server: Maker, tmp_path: Path) -> None:
    done = run(server.url, tmp_path, f"it {FAILING}", options=("--max-failures", "0"))
    assert done.exit_code == 1
    assert f"{tmp_path / 'prompts.jsonl'}:1: 000001 failed: the denoiser failed\n" in done.stderr
    assert "0 of 1 videos are in" in done.stdout


def test_invalid_lines_have_the_form_of_a_compilers_errors(server: Maker, tmp_path: Path) -> None:
    done = run(server.url, tmp_path, "x", {"prompt": "x", "frames": 9}, 5)
    assert done.exit_code == 2
    frames, number, error = done.stderr.splitlines()
    assert frames.startswith(f"{tmp_path / 'prompts.jsonl'}:2: frames: got 9")
    assert number.startswith(f"{tmp_path / 'prompts.jsonl'}:3: line: got 5, expected a JSON object")
    assert error == "error: 2 of 3 lines are invalid; nothing was started"
    assert done.stdout == ""


def test_a_server_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    done = run(f"http://127.0.0.1:{free_port()}", tmp_path, "x")
    assert done.exit_code == 1
    assert done.stderr.startswith("error: cannot connect to ")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(("text", "seeds"), [("7", (7,)), ("1,2", (1, 2)), ("1, 5-7", (1, 5, 6, 7)), ("3-3", (3,))])
def test_seeds_are_numbers_and_ranges(text: str, seeds: tuple[int, ...]) -> None:
    assert Seeds().convert(text, None, None) == seeds


@pytest.mark.parametrize("text", ["", "a", "1-", "-1", "1-2-3", "1,,2", "1.5", "5-4", "0-4294967295"])
def test_what_is_no_seed_is_refused(text: str) -> None:
    with pytest.raises(click.BadParameter, match="expected up to 100000 numbers, such as 1,2,10-19"):
        Seeds().convert(text, None, None)


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(command_line, "time", clock)
    return clock


def test_lines_of_progress_come_every_ten_seconds(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress(Path("x"), terminal=False)
    progress.begins(total=100, found=40)
    for _ in range(12):
        clock.now += 4
        progress.made({})
    lines = capsys.readouterr().err.splitlines()[1:]
    assert lines == [
        "41 of 100 videos, 900 videos/hour, 03:56 left",
        "44 of 100 videos, 900 videos/hour, 03:44 left",
        "47 of 100 videos, 900 videos/hour, 03:32 left",
        "50 of 100 videos, 900 videos/hour, 03:20 left",
    ]


def test_a_terminal_shows_a_bar_and_failures_above_it(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress(Path("x"), terminal=True)
    progress.begins(total=4, found=1)
    clock.now = 1800
    progress.made({})
    progress.failed("b", 2, "no")
    with pytest.raises(SystemExit) as ended:
        progress.finish(Summary(4, 1, 1, 1, 1800), "out")
    assert ended.value.code == 1
    out, err = capsys.readouterr()
    assert "2 of 4 |" in err
    assert "2 videos/hour, 1:00:00 left" in err
    assert "x:2: b failed: no\n" in err
    assert out == "2 of 4 videos are in out: 1 were there, 1 made, 1 failed in 30:00 (2 videos/hour)\n"
