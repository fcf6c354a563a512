"""The most that something reached while a thread watched it."""

import os
import subprocess
import threading
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Self

import psutil

from benchmarks.server import descendants

PERIOD_S = 0.2
GPU_QUERY = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]


class Peak:
    """Reads a number every ``PERIOD_S`` and keeps the largest one. A reading of None is none."""

    def __init__(self, read: Callable[[], float | None]) -> None:
        self._read = read
        self._first: float | None = None
        self._most: float | None = None
        self._lock = threading.Lock()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def begin(self) -> None:
        """Forget what was before."""
        first = self._read()
        with self._lock:
            self._first = self._most = first

    def most(self) -> float | None:
        """The largest reading since the beginning, the present one included."""
        self._note(self._read())
        with self._lock:
            return self._most

    def grown(self) -> float | None:
        """By how much the largest reading is above that at the beginning."""
        with self._lock:
            return None if self._most is None or self._first is None else self._most - self._first

    def _watch(self) -> None:
        while not self._done.wait(PERIOD_S):
            self._note(self._read())

    def _note(self, reading: float | None) -> None:
        with self._lock:
            if reading is not None and (self._most is None or reading > self._most):
                self._most = reading

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._thread.join()


def gpu_gib() -> float | None:
    """Memory in use by whatever process on the GPUs that this one may use, in GiB; None without nvidia-smi."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    query = [*GPU_QUERY, f"--id={chosen}"] if chosen else GPU_QUERY
    try:
        told = subprocess.run(query, capture_output=True, text=True, check=True, timeout=10).stdout
        return sum(map(float, told.split())) / 1024
    except (OSError, ValueError, subprocess.SubprocessError):
        return None


def replicas(server_pid: int, deployment: str) -> list[int]:
    """The processes of a deployment's replicas on a server of our own."""
    title = f"ray::ServeReplica:cosmos3:{deployment}"
    return [pid for pid, words in descendants(server_pid).items() if words.startswith(title)]


def resident_gib(pids: list[int]) -> float | None:
    """Memory that the processes hold, pages that they share included, in GiB."""
    held = 0
    for pid in pids:
        with suppress(psutil.Error):
            held += psutil.Process(pid).memory_info().rss
    return held / 2**30 if held else None
