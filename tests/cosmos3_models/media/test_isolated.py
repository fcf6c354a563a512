"""Reading in a process of its own: the same results, and nothing that the process does harms this one."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest
from media_files import clip, film, lossless, mutations, picture, saved
from paths import ROOT
from PIL import Image

from cosmos3_models.errors import InvalidInput
from cosmos3_models.media import isolated, reading

FILM = film()
RGBA = Image.fromarray(np.random.default_rng(5).integers(0, 256, (31, 46, 4), dtype=np.uint8))
EXIF = Image.Exif()
EXIF[0x0112] = 6
FILES = {
    "png": picture(RGBA, "PNG"),
    "png with palette": picture(RGBA.convert("RGB").quantize(16), "PNG", transparency=2),
    "16-bit png": picture(Image.fromarray(np.arange(600, dtype=np.uint16).reshape(20, 30) * 100), "PNG"),
    "jpeg": picture(RGBA.convert("RGB"), "JPEG", exif=EXIF.tobytes()),
    "cmyk jpeg": picture(RGBA.convert("CMYK"), "JPEG"),
    "webp": picture(RGBA, "WEBP", exif=EXIF.tobytes()),
    "mp4": clip(FILM, sound=True),
    "hevc": clip(FILM, "mov", "libx265", "yuv420p10le", {"x265-params": "log-level=none"}),
    "prores": clip(FILM, "mov", "prores_ks", "yuv422p10le"),
    "mpeg4": clip(FILM, "mp4", "mpeg4"),
    "vp9": clip(FILM, "webm", "libvpx-vp9"),
    "vp8": clip(FILM, "webm", "libvpx"),
    "lossless": lossless(FILM, "matroska"),
}


def children() -> list[psutil.Process]:
    return [child for child in psutil.Process().children(recursive=True) if "reader" in " ".join(child.cmdline())]


@pytest.mark.parametrize("name", FILES)
def test_the_results_are_those_of_this_process(tmp_path: Path, name: str) -> None:
    path = saved(tmp_path, FILES[name])
    ours, theirs = (np.concatenate(list(read(path, 4, "last"))) for read in (isolated.frames, reading.frames))
    np.testing.assert_array_equal(ours, theirs)
    assert not children()


@pytest.mark.parametrize("name", ["png", "mp4"])
def test_what_a_file_holds_is_said_as_in_this_process(tmp_path: Path, name: str) -> None:
    path = saved(tmp_path, FILES[name])
    assert isolated.inspect(path) == reading.inspect(path)


@pytest.mark.parametrize("data", [b"", b"hello", picture(RGBA, "GIF"), picture(RGBA, "PNG")[:100]])
def test_refusals_are_those_of_this_process(tmp_path: Path, data: bytes) -> None:
    path = saved(tmp_path, data)
    with pytest.raises(InvalidInput) as theirs:
        reading.inspect(path)
    with pytest.raises(InvalidInput) as ours:
        isolated.inspect(path)
    assert str(ours.value) == str(theirs.value)
    with pytest.raises(InvalidInput):
        list(isolated.frames(path, 1, "first"))


def test_the_process_imports_no_large_library() -> None:
    script = (
        "import sys, cosmos3_models.media.reader_process\n"
        "assert not {'torch', 'ray', 'fastapi', 'pydantic'} & set(sys.modules), sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True)


def test_a_file_that_is_not_there_is_no_bad_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        isolated.inspect(tmp_path / "missing.png")


def test_a_closed_iterator_ends_its_process(tmp_path: Path) -> None:
    frames = isolated.frames(saved(tmp_path, lossless(film(60, 240, 320))), 60, "first")
    assert not children(), "nothing starts before the first frame"
    next(frames)
    (child,) = children()
    frames.close()  # type: ignore[attr-defined]
    assert not child.is_running()


def test_the_time_that_the_caller_takes_does_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path, lossless(film(40, 240, 320)))  # more than a pipe holds
    away_s = 0.0
    clock = SimpleNamespace(monotonic=lambda: time.monotonic() + away_s)
    monkeypatch.setattr(isolated, "time", clock)
    frames = isolated.frames(path, 40, "first")
    next(frames)
    away_s = 2 * isolated.WALL_SECONDS
    assert sum(1 for _ in frames) == 39


def test_files_are_read_at_the_same_time_in_threads_and_from_asyncio(tmp_path: Path) -> None:
    path = saved(tmp_path, FILES["lossless"])

    async def inspect_all() -> list[reading.MediaInfo]:
        with ThreadPoolExecutor(max_workers=2) as pool:
            loop = asyncio.get_running_loop()
            return await asyncio.gather(*(loop.run_in_executor(pool, isolated.inspect, path) for _ in range(6)))

    assert asyncio.run(inspect_all()) == [reading.inspect(path)] * 6


def test_a_process_that_is_killed_while_it_reads_gives_an_error(tmp_path: Path) -> None:
    frames = isolated.frames(saved(tmp_path, lossless(film(60, 240, 320))), 60, "first")
    next(frames)
    children()[0].kill()
    with pytest.raises(InvalidInput, match="ended with SIGKILL") as error:
        list(frames)
    assert error.value.param == "input_reference"


@pytest.fixture
def faulty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isolated, "MODULE", "faulty_reader")


CRASHES = {
    "eat memory": "status 1",
    "spend time": "CPU time",
    "crash": "SIGSEGV",
    "kill": "SIGKILL",
    "exit": "status 0",
    "raise": "status 1",
    "open files": "status 0",
}
MESSAGES = ("garbage", "long message", "no json", "deep json", "a list", "wrong types", "wrong kind", "odd refusal")
FRAMES = ("wrong frame types", "huge frame", "negative frame", "half a frame")


@pytest.mark.usefixtures("faulty")
@pytest.mark.parametrize("fault", CRASHES)
def test_a_process_that_ends_gives_an_error(tmp_path: Path, fault: str, capfd: pytest.CaptureFixture[str]) -> None:
    path = saved(tmp_path, fault.encode())
    with pytest.raises(InvalidInput, match=CRASHES[fault]) as error:
        isolated.inspect(path)
    assert error.value.param == "input_reference"
    assert fault != "eat memory" or "MemoryError" in capfd.readouterr().err
    assert not children()


@pytest.mark.usefixtures("faulty")
@pytest.mark.parametrize("fault", [*MESSAGES, *FRAMES])
def test_garbage_from_the_process_gives_an_error(tmp_path: Path, fault: str) -> None:
    path = saved(tmp_path, fault.encode())
    with pytest.raises(InvalidInput, match=r"garbage|status 0") as error:
        if fault in FRAMES:
            list(isolated.frames(path, 2, "first"))
        else:
            isolated.inspect(path)
    assert error.value.param == "input_reference"


@pytest.mark.usefixtures("faulty")
def test_a_process_that_takes_too_long_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Impatient(isolated._Reader):
        def message(self) -> dict[str, Any]:
            found = super().message()
            self._time_left = 0.5
            return found

    monkeypatch.setattr(isolated, "_Reader", Impatient)
    frames = isolated.frames(saved(tmp_path, b"sleep"), 2, "first")
    next(frames)
    with pytest.raises(InvalidInput, match=f"takes more than {isolated.WALL_SECONDS:g} s"):
        next(frames)
    assert not children()


@pytest.mark.usefixtures("faulty")
def test_a_process_that_does_not_start_is_not_the_files_fault(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"did not start: .* status 1"):
        isolated.inspect(saved(tmp_path, b"never"))


def test_the_process_ends_with_its_parent(tmp_path: Path) -> None:
    path = saved(tmp_path, b"sleep")
    script = (
        "import pathlib, time\n"
        "from cosmos3_models.media import isolated\n"
        "isolated.MODULE = 'faulty_reader'\n"
        f"frames = isolated.frames(pathlib.Path({str(path)!r}), 2, 'first')\n"
        "next(frames)\n"
        "print('reading', flush=True)\n"
        "time.sleep(3600)\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests/support")])}
    with subprocess.Popen([sys.executable, "-c", script], env=environment, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == "reading\n"
        (child,) = psutil.Process(parent.pid).children()
        parent.send_signal(signal.SIGKILL)
    _, alive = psutil.wait_procs([child], timeout=10)
    assert not alive


def test_the_process_gets_none_of_this_ones_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    frames = isolated.frames(saved(tmp_path, lossless(film(60, 240, 320))), 60, "first")
    next(frames)
    assert "AWS_SECRET_ACCESS_KEY" not in children()[0].environ()
    frames.close()  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ["png", "jpeg", "webp", "mp4", "hevc", "vp9"])
def test_mutated_files_give_the_frames_or_the_error_of_this_process(tmp_path: Path, name: str) -> None:
    for data in mutations(FILES[name], 4, seed=1):
        path = saved(tmp_path, data)
        ours, theirs = (outcome(read, path) for read in (isolated.frames, reading.frames))
        assert ours == theirs


def outcome(read: Callable[[Path, int, reading.Keep], Iterator[reading.Frames]], path: Path) -> str | bytes:
    try:
        return np.concatenate(list(read(path, 2, "last"))).tobytes()
    except InvalidInput as error:
        return str(error)
