"""Bytes of clients in temporary files, hashed while they arrive. No more than a block of them is in memory."""

import asyncio
import fcntl
import hashlib
import secrets
import shutil
import tempfile
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from serve.errors import TooLarge

MAX_UPLOAD_BYTES = 64 << 20
BLOCK_BYTES = 1 << 18  # written and hashed at a time
THREADS = 2  # that write and hash; more would only compete for the disk
PREFIX = "cosmos3-uploads-"
LOCK = "lock"


@dataclass(frozen=True)
class Upload:
    """The bytes of a picture or clip in a temporary file, whose owner removes it.

    Attributes:
        sha256: in hexadecimal.
        size: bytes.
    """

    path: Path
    sha256: str
    size: int


class UploadFolder:
    """A private folder of temporary files, which no longer exists when the process has ended.

    A process that was killed leaves its folder behind. The next one removes it: the operating system has released the
    lock of the dead process.

    Args:
        parent: where the folder is made; the system's folder of temporary files by default.

    Attributes:
        close: removes the folder; the end of the process or of this object does so as well.
    """

    def __init__(self, parent: Path | None = None) -> None:
        parent = parent or Path(tempfile.gettempdir())
        _remove_abandoned(parent)
        made = Path(tempfile.mkdtemp(dir=parent))
        self._lock = (made / LOCK).open("w")
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        self._folder = made.rename(parent / (PREFIX + made.name))  # by this name only with the lock in it
        self._threads = ThreadPoolExecutor(THREADS, "uploads")
        self.close = weakref.finalize(self, _close, self._folder, self._threads, self._lock)

    @contextmanager
    def receiving(self) -> Iterator["Receiver"]:
        """Receive the files of one request; they are removed at the end of the block."""
        receiver = Receiver(self._folder, self._threads)
        try:
            yield receiver
        finally:
            receiver.remove()


class Receiver:
    """Makes the temporary files of one request."""

    def __init__(self, folder: Path, threads: ThreadPoolExecutor) -> None:
        self._folder, self._threads = folder, threads
        self._spools: list[Spool] = []

    def spool(self) -> "Spool":
        """Start a new file."""
        self._spools.append(Spool(self._folder / secrets.token_hex(8), self._threads))
        return self._spools[-1]

    def remove(self) -> None:
        """Remove all files."""
        for spool in self._spools:
            spool.remove()


class Spool:
    """A file that is being written.

    Args:
        path: of a file that does not exist yet.
        threads: where it is written and hashed.
    """

    def __init__(self, path: Path, threads: ThreadPoolExecutor) -> None:
        self._path, self._threads = path, threads
        self._pending = bytearray()
        self._hash = hashlib.sha256()
        self._size = 0
        self._removed = False

    def feed(self, data: bytes | bytearray | memoryview) -> None:
        """Take bytes, which the next ``flush`` writes.

        Raises:
            TooLarge: there are more than ``MAX_UPLOAD_BYTES``.
        """
        self._size += len(data)
        if self._size > MAX_UPLOAD_BYTES:
            message = f"input_reference: got a file of more than {MAX_UPLOAD_BYTES >> 20} MiB, expected at most that"
            raise TooLarge(message, "input_reference")
        self._pending += data

    async def flush(self, least: int = BLOCK_BYTES) -> None:
        """Write what was taken, if it is at least ``least`` bytes."""
        if len(self._pending) >= least:
            pending, self._pending = self._pending, bytearray()
            await asyncio.get_running_loop().run_in_executor(self._threads, self._write, pending)

    async def finish(self) -> Upload:
        """Write the rest and return the finished file."""
        await self.flush(0)
        return Upload(self._path, self._hash.hexdigest(), self._size)

    def remove(self) -> None:
        """Remove the file, also one that a thread is about to write."""
        self._removed = True
        self._path.unlink(missing_ok=True)

    def _write(self, data: bytearray) -> None:
        self._hash.update(data)
        with self._path.open("ab") as file:
            file.write(data)
        if self._removed:
            self._path.unlink(missing_ok=True)


def _close(folder: Path, threads: ThreadPoolExecutor, lock: IO[str]) -> None:
    threads.shutdown()
    shutil.rmtree(folder, ignore_errors=True)
    lock.close()


def _remove_abandoned(parent: Path) -> None:
    """Remove the folders of processes that no longer run."""
    for folder in parent.glob(f"{PREFIX}*"):
        with suppress(OSError), (folder / LOCK).open() as lock:  # another user's, or another process removes it now
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
