"""The videos of a batch: whole or not at all, found again, and in a list that tools for datasets read."""

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import fsspec
import pytest

from cosmos3_models import GenerationParams
from serve.client.batch import InvalidBatch
from serve.client.batch.output import LISTED, Listed, Output
from serve.client.batch.wanted import Wanted
from serve.schema import described

PARAMS = GenerationParams(prompt="x", num_frames=9, height=64, width=96)
RECORD = described(PARAMS) | {"model": "m", "stage_durations": {"denoiser": 1.0}}
VIDEO = Wanted(1, "ball", "key", {"prompt": "x"}, None)


@pytest.fixture(params=["folder", "object store"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    yield str(tmp_path / "out") if request.param == "folder" else f"memory://{tmp_path.name}"
    fsspec.filesystem("memory").store.clear()


@pytest.fixture
def listed() -> Iterator[Listed]:
    with closing(Listed()) as listed:
        yield listed


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """The file of a video, as it was downloaded."""
    file = tmp_path / "downloaded"
    file.write_bytes(b"mp4")
    return file


def names(url: str) -> set[str]:
    filesystem, root = fsspec.url_to_fs(url)
    return {Path(name).name for name in filesystem.ls(root, detail=False)}


def test_a_video_is_saved_with_its_record_and_found_again(url: str, made: Path) -> None:
    output = Output(url)
    assert output.finished(VIDEO) is None
    saved = output.save(VIDEO, RECORD, made)
    assert names(url) == {"ball.mp4", "ball.json"}
    assert Output(url).finished(VIDEO) == saved
    assert saved["sha256"] == hashlib.sha256(b"mp4").hexdigest()
    assert {name: saved[name] for name in ("file_name", "bytes", "line", "key", "request", "seed", "model")} == {
        "file_name": "ball.mp4",
        "bytes": 3,
        "line": 1,
        "key": "key",
        "request": {"prompt": "x"},
        "seed": 42,
        "model": "m",
    }


def test_an_image_is_a_png(url: str, made: Path) -> None:
    Output(url).save(VIDEO, RECORD | {"num_frames": 1}, made)
    assert names(url) == {"ball.png", "ball.json"}


@pytest.mark.parametrize("rest", [None, b"m"], ids=["gone", "cut short"])
def test_a_record_without_its_whole_video_counts_for_nothing(url: str, made: Path, rest: bytes | None) -> None:
    Output(url).save(VIDEO, RECORD, made)
    filesystem, root = fsspec.url_to_fs(url)
    filesystem.rm(f"{root}/ball.mp4")
    if rest is not None:
        filesystem.pipe_file(f"{root}/ball.mp4", rest)
    assert Output(url).finished(VIDEO) is None


@pytest.mark.parametrize("text", [b'{"line": 7, "key": "other"}', b"{}", b"[]", b"no JSON", b"\xff"])
def test_what_has_another_origin_is_never_overwritten(url: str, text: bytes) -> None:
    output = Output(url)
    filesystem, root = fsspec.url_to_fs(url)
    filesystem.pipe_file(f"{root}/ball.json", text)
    with pytest.raises(InvalidBatch, match=r"line 1: ball\.json in .* is of (line 7 of another batch|something else)"):
        output.finished(VIDEO)


def test_a_disk_that_fills_up_leaves_no_record(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = Output(str(tmp_path / "out"))

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        output.save(VIDEO, RECORD, made)
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("url", ["/nowhere/out", "nothing://bucket"])
def test_a_place_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(InvalidBatch, match=url):
        Output(url)


def test_the_list_has_one_type_in_each_column_and_the_order_of_the_batch(url: str, made: Path, listed: Listed) -> None:
    output = Output(url)
    caption = {"subject": "a ball"}
    for place, (name, record) in reversed([*enumerate((("a", RECORD), ("b", RECORD | {"prompt": caption})))]):
        listed.add(place, output.save(VIDEO._replace(name=name), record, made))
    output.write_list(listed)
    filesystem, root = fsspec.url_to_fs(url)
    rows: list[dict[str, Any]] = [*map(json.loads, filesystem.cat_file(f"{root}/metadata.jsonl").splitlines())]
    assert [row["file_name"] for row in rows] == ["a.mp4", "b.mp4"]
    assert [row["prompt"] for row in rows] == ["x", json.dumps(caption)]
    for row in rows:
        assert [*row] == ["file_name", *LISTED, "line", "bytes", "sha256"]
        assert not [value for value in row.values() if isinstance(value, dict | list)]


def test_a_name_is_taken_in_any_case(listed: Listed) -> None:
    assert [listed.name(name, line) for line, name in enumerate(("a", "b", "A", "c"), start=1)] == [None, None, 1, None]
