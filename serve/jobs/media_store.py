"""Where the files of finished jobs are, for coroutines: in threads, and with a limit of time."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeVar

from serve.errors import MediaUnavailable
from serve.jobs.private_files import FILE_MODE, FOLDER_MODE, make_private_folder
from serve.whole_files import WholeFiles

T = TypeVar("T")

logger = logging.getLogger("ray.serve")

TIMEOUT_S = 60.0  # of one call to the store
SLOWEST_BYTES_PER_S = 1 << 20  # a slower write is given up
BLOCK_BYTES = 1 << 20  # read at a time, in one request to an object store
THREADS = 16  # of our own: a store that hangs must not block the threads of other work


class Content(NamedTuple):
    """A stored file as it is sent to a client.

    Attributes:
        size: bytes.
        filename: for downloads.
        etag: without quotes; the same bytes have the same one on every replica and in every store.
        modified: seconds since the epoch.
        read: yields the bytes from a first to before an end, in blocks. Raises ``FileNotFoundError``.
    """

    size: int
    media_type: str
    filename: str
    etag: str
    modified: float
    read: Callable[[int, int], AsyncIterator[bytes]]


class MediaStore:
    """Files by name. Every method raises ``MediaUnavailable`` when the store refuses or does not answer.

    Args:
        url: a path or an fsspec URL, such as ``s3://bucket/videos``.
    """

    def __init__(self, url: str) -> None:
        self._files = WholeFiles(url, (FILE_MODE, FOLDER_MODE))
        self._threads = ThreadPoolExecutor(THREADS, "media")
        self._make_root()

    async def write(self, name: str, data: bytes) -> None:
        """Store ``data`` as ``name`` or ``folder/name``; the file is invisible until it is whole."""
        await self._try(lambda: self._files.write(name, data), TIMEOUT_S + len(data) / SLOWEST_BYTES_PER_S)

    async def write_file(self, name: str, path: Path) -> None:
        """Store the file at ``path`` as ``folder/name``, block by block; it is invisible until it is whole."""
        timeout_s = TIMEOUT_S + path.stat().st_size / SLOWEST_BYTES_PER_S
        await self._try(lambda: self._files.write(name, path), timeout_s)

    async def size(self, name: str) -> int | None:
        """Return the file's size in bytes; None if there is no such file."""
        return await self._try(lambda: self._files.size(name))

    async def read(self, name: str, start: int, end: int) -> AsyncIterator[bytes]:
        """Yield the bytes from ``start`` to before ``end``, block by block.

        Raises:
            FileNotFoundError: there is no such file, or no longer.
        """
        for first in range(start, end, BLOCK_BYTES):
            last = min(end, first + BLOCK_BYTES)
            block = await self._try(partial(self._files.read, name, first, last))
            if block is None:
                raise FileNotFoundError(name)
            yield block

    async def remove(self, *names: str) -> None:
        """Remove those of the files that exist."""
        await self._try(lambda: self._files.remove(names))

    async def older_than(self, age_s: float, folder: str) -> list[str]:
        """Return ``folder/name`` of all files in a folder that were last written at least ``age_s`` seconds ago."""
        return await self._try(lambda: self._files.older_than(age_s, folder))

    def _make_root(self) -> None:
        if self._files.folder is not None:
            return make_private_folder(self._files.folder)
        try:
            self._files.make_root()
        except Exception:
            # A store may refuse to create a folder that exists, and still accept files.
            logger.warning("The media store refused to create its folder; files are still written.", exc_info=True)

    async def _try(self, action: Callable[[], T], timeout_s: float = TIMEOUT_S) -> T:
        try:
            async with asyncio.timeout(timeout_s):
                return await asyncio.get_running_loop().run_in_executor(self._threads, action)
        except Exception as error:  # each store has its own kinds
            raise MediaUnavailable("the media store does not answer; try again", retry_after_s=5) from error
