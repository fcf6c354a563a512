"""Files are whole or absent, on a folder and on a store that is none."""

import asyncio
import os
import secrets
import stat
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from serve.errors import MediaUnavailable
from serve.jobs import media_store as storage
from serve.jobs.media_store import MediaStore
from serve.whole_files import UNFINISHED


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
    assert asyncio.run(store.older_than(0, "ours")) == []
    asyncio.run(store.write("ours/a.mp4", b"one"))
    asyncio.run(store.write("theirs/b.mp4", b"one"))
    assert asyncio.run(store.older_than(60, "ours")) == []
    time.sleep(0.05)
    assert asyncio.run(store.older_than(0.01, "ours")) == ["ours/a.mp4"]


def test_a_file_that_could_not_be_written_whole_is_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = MediaStore(str(tmp_path))

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(MediaUnavailable) as error:
        asyncio.run(store.write("a.mp4", b"one"))
    assert str(tmp_path) not in str(error.value)
    assert content(store, "a.mp4") is None
    assert list(tmp_path.iterdir()) == [], "no part of it remains"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no full device here")
def test_a_really_full_disk_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(secrets, "token_hex", lambda _: "0")
    (tmp_path / f"a.mp4.0{UNFINISHED}").symlink_to("/dev/full")
    with pytest.raises(MediaUnavailable):
        asyncio.run(MediaStore(str(tmp_path)).write("a.mp4", b"x" * 100_000))


def test_a_file_and_its_name_are_on_disk_before_it_counts_as_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a power cut a record must find its file: the data goes first, then the name, then the folder's list."""
    done: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def note_sync(handle: int) -> None:
        done.append("folder" if stat.S_ISDIR(os.fstat(handle).st_mode) else "file")
        fsync(handle)

    def note_rename(path: Path, target: Path) -> Path:
        done.append("rename")
        return replace(path, target)

    monkeypatch.setattr(os, "fsync", note_sync)
    monkeypatch.setattr(Path, "replace", note_rename)
    asyncio.run(MediaStore(str(tmp_path)).write("ours/a.mp4", b"one"))
    assert done == ["folder", "file", "rename", "folder"]


def test_an_object_store_gets_a_file_in_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    store = MediaStore("memory://whole")
    moved: list[Any] = []
    monkeypatch.setattr(type(fsspec.filesystem("memory")), "mv", lambda *names, **_: moved.append(names))
    asyncio.run(store.write("ours/a.mp4", b"one"))
    assert content(store, "ours/a.mp4") == b"one"
    assert moved == [], "a copy under another name is a second upload"


def test_a_store_that_does_not_answer_is_reported_and_blocks_no_other_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "TIMEOUT_S", 0.2)
    store = MediaStore("memory://hanging")
    release = threading.Event()
    monkeypatch.setattr(type(fsspec.filesystem("memory")), "pipe_file", lambda *_: release.wait(100))

    async def scenario() -> None:
        writes = [asyncio.create_task(store.write(f"{number}.mp4", b"")) for number in range(2 * storage.THREADS)]
        results = await asyncio.gather(*writes, return_exceptions=True)
        assert {type(result) for result in results} == {MediaUnavailable}
        assert await asyncio.wait_for(asyncio.to_thread(lambda: "free"), 60) == "free"

    try:
        asyncio.run(scenario())
    finally:
        release.set()


def test_a_store_that_refuses_to_make_its_folder_still_takes_files(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise PermissionError("AccessDenied")

    monkeypatch.setattr(type(fsspec.filesystem("memory")), "makedirs", refuse)
    store = MediaStore("memory://bucket")
    asyncio.run(store.write("ours/a.mp4", b"one"))
    assert content(store, "ours/a.mp4") == b"one"


def test_a_store_that_refuses_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    store = MediaStore("memory://refusing")

    def refuse(*_: Any, **__: Any) -> Any:
        raise PermissionError("/secret")

    monkeypatch.setattr(type(fsspec.filesystem("memory")), "pipe_file", refuse)
    with pytest.raises(MediaUnavailable, match=r"^the media store does not answer; try again$"):
        asyncio.run(store.write("a.mp4", b"one"))
