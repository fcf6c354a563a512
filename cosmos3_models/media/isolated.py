"""Read pictures and clips from outside in a process of their own, which a bomb or a decoder's bug can only end.

The functions are those of ``reading.py`` with the same results. Each call starts one process with limits of memory,
CPU time and wall time (``limits.py``) and no right to open files. They block and may run in any thread; asyncio calls
them by ``run_in_executor``. They do not bound how many run at once: the caller does, by its executor's
``max_workers``, and each may take up to ``MEMORY_BYTES``.
"""

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Generator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from cosmos3_models.errors import InvalidInput
from cosmos3_models.media.limits import CPU_SECONDS, MAX_PICTURE_PIXELS, WALL_SECONDS, refusal
from cosmos3_models.media.reader_process import LENGTH_BYTES
from cosmos3_models.media.reading import Frames, Keep, MediaInfo

MODULE = "cosmos3_models.media.reader_process"
# What Python and the shared libraries need; a process with foreign data gets no keys of this one.
ENVIRONMENT = ("PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "TMPDIR")
# A library with a thread for each core would count their stacks as memory.
ONE_THREAD = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"}
MAX_MESSAGE_BYTES = 4096
MAX_TEXT = 300
UNDAMAGED = "an undamaged picture or clip"


def inspect(path: Path) -> MediaInfo:
    """Decode a whole file in a process of its own and return what it holds.

    Raises:
        InvalidInput: the file is refused, or its process crashed, was killed or exceeded a limit.
        OSError: there is no such file, or it may not be read.
        RuntimeError: the process did not start, which is not the file's fault.
    """
    with _Reader(path, "inspect") as reader:
        kind, width, height, number = _checked(reader.message(), "info", [str, int, int, int])
    if kind not in ("image", "video") or min(width, height, number) < 1:
        raise _garbage()
    return MediaInfo(kind, width, height, number)


def frames(path: Path, count: int, keep: Keep) -> Generator[Frames, None, None]:
    """Yield ``count`` frames of a file as ``reading.frames`` does: uint8 (1, h, w, 3).

    The process starts with the first frame, waits while the caller works, and ends with the iterator.

    Raises:
        InvalidInput: the file is refused, or its process crashed, was killed or exceeded a limit.
        OSError: there is no such file, or it may not be read.
        RuntimeError: the process did not start, which is not the file's fault.
    """
    with _Reader(path, "frames", str(count), keep) as reader:
        for _ in range(count):
            height, width = _checked(reader.message(), "size", [int, int])
            if min(height, width) < 1 or height * width > MAX_PICTURE_PIXELS:
                raise _garbage()
            frame = np.empty((1, height, width, 3), dtype=np.uint8)
            reader.fill(frame.data.cast("B"))
            yield frame


class _Reader:
    """A process that reads one file. Nothing that it sends is trusted."""

    def __init__(self, path: Path, *action: str) -> None:
        self._time_left = WALL_SECONDS
        self._ready = False
        environment = {name: os.environ[name] for name in ENVIRONMENT if name in os.environ} | ONE_THREAD
        environment["PYTHONPATH"] = os.pathsep.join(folder for folder in sys.path if folder)
        with path.open("rb") as file:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", MODULE, str(os.getpid()), *action],
                stdin=file,
                stdout=subprocess.PIPE,
                env=environment,
                start_new_session=True,  # Ctrl-C is for this process, which then ends the other one
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.wait()
        self._output.close()

    @property
    def _output(self) -> Any:
        return self._process.stdout

    def message(self) -> dict[str, Any]:
        """The next message; raises ``InvalidInput`` if it is a refusal."""
        if not self._ready:
            self._ready = bool(self._next().get("ready"))
        message = self._next()
        if "refused" in message:
            raise refusal(*(text[:MAX_TEXT] for text in _checked(message, "refused", [str, str, str])))
        return message

    def _next(self) -> dict[str, Any]:
        length = bytearray(LENGTH_BYTES)
        self.fill(memoryview(length))
        if int.from_bytes(length) > MAX_MESSAGE_BYTES:
            raise _garbage()
        body = bytearray(int.from_bytes(length))
        self.fill(memoryview(body))
        try:
            message = json.loads(body)
        except (ValueError, RecursionError) as error:
            raise _garbage() from error
        if not isinstance(message, dict):
            raise _garbage()
        return message

    def fill(self, buffer: memoryview) -> None:
        """Read exactly so many bytes; raises ``InvalidInput`` if the process ends or takes too long."""
        poll = select.poll()
        poll.register(self._output, select.POLLIN)
        while buffer:
            started = time.monotonic()
            arrived = poll.poll(max(0.0, self._time_left) * 1000)
            self._time_left -= time.monotonic() - started
            if not arrived:
                raise self._failure(f"a file that takes more than {WALL_SECONDS:g} s to decode")
            number = os.readv(self._output.fileno(), [buffer])
            if number == 0:
                raise self._failure(self._end())
            buffer = buffer[number:]

    def _failure(self, got: str) -> Exception:
        if not self._ready:
            return RuntimeError(f"the process that reads files did not start: {got}")
        return refusal(got, UNDAMAGED, "its decoder could not finish within its limits")

    def _end(self) -> str:
        """How the process ended, in the words of an error."""
        code = self._process.wait()
        if code == -signal.SIGXCPU:
            return f"a file that takes more than {CPU_SECONDS} s of CPU time to decode"
        return f"a file whose decoder ended with {signal.Signals(-code).name if code < 0 else f'status {code}'}"


def _checked(message: dict[str, Any], name: str, types: list[type]) -> list[Any]:
    """The list that a message holds under a name, if its values have these types."""
    values = message.get(name)
    if not isinstance(values, list) or [type(value) for value in values] != types:
        raise _garbage()
    return values


def _garbage() -> InvalidInput:
    return refusal("a file whose decoder wrote garbage", UNDAMAGED, "its result cannot be trusted")
