"""Files are whole or absent, on a folder and on a store that is none."""

import asyncio
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from serve.errors import MediaUnavailable
from serve.storage import UNFINISHED, MediaStore


@pytest.fixture(params=["folder", "object store"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[MediaStore]:
    """fsspec's memory store stands for every store whose files have no path on this machine."""
    yield MediaStore(str(tmp_path / "media") if request.param == "folder" else f"memory://{tmp_path.name}")
    fsspec.filesystem("memory").store.clear()


def content(store: MediaStore, name: str) -> bytes | None:
    async def read() -> bytes | None:
        size = await store.size(name)
        return None if size is None else b"".join([block async for block in store.read(name, 0, size)])

    return asyncio.run(read())


def test_what_is_written_is_read_and_removed(store: MediaStore) -> None:
    assert content(store, "a.mp4") is None
    asyncio.run(store.write("a.mp4", b"one"))
    asyncio.run(store.write("a.mp4", b"two"))
    assert content(store, "a.mp4") == b"two"
    asyncio.run(store.remove("a.mp4", "never there"))
    assert content(store, "a.mp4") is None


def test_only_old_files_are_old(store: MediaStore) -> None:
    asyncio.run(store.write("a.mp4", b"one"))
    assert asyncio.run(store.older_than(60)) == []
    time.sleep(0.05)
    assert asyncio.run(store.older_than(0.01)) == ["a.mp4"]


def test_a_file_that_could_not_be_written_whole_is_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = MediaStore(str(tmp_path))

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(MediaUnavailable) as error:
        asyncio.run(store.write("a.mp4", b"one"))
    assert str(tmp_path) not in str(error.value)
    assert content(store, "a.mp4") is None
    time.sleep(0.05)
    assert asyncio.run(store.older_than(0.01)) == ["a.mp4" + UNFINISHED], "the sweep finds what is left"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no full device here")
def test_a_really_full_disk_is_told(tmp_path: Path) -> None:
    (tmp_path / f"a.mp4{UNFINISHED}").symlink_to("/dev/full")
    with pytest.raises(MediaUnavailable):
        asyncio.run(MediaStore(str(tmp_path)).write("a.mp4", b"x" * 100_000))


def test_a_store_that_refuses_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    store = MediaStore("memory://refusing")

    def refuse(*_: Any, **__: Any) -> Any:
        raise PermissionError("/secret")

    monkeypatch.setattr(type(fsspec.filesystem("memory")), "open", refuse)
    with pytest.raises(MediaUnavailable, match=r"^the media store does not answer; try again$"):
        asyncio.run(store.write("a.mp4", b"one"))
