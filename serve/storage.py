"""Where finished videos are kept: a folder, or any object store that fsspec knows. A file is whole or absent."""

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import fsspec
from fsspec.implementations.local import LocalFileSystem

from serve.errors import MediaUnavailable
from serve.folders import FILE_MODE, make_private_folder

T = TypeVar("T")

UNFINISHED = ".part"
BLOCK_BYTES = 1 << 20  # read at a time, in one request to an object store


class MediaStore:
    """Files by name. Every method raises ``MediaUnavailable`` when the store refuses.

    Args:
        url: a path or an fsspec URL, such as ``s3://bucket/videos``.
    """

    def __init__(self, url: str) -> None:
        self._fs, self._root = fsspec.url_to_fs(url, use_listings_cache=False)
        if isinstance(self._fs, LocalFileSystem):
            make_private_folder(Path(self._root))
        else:
            self._fs.makedirs(self._root, exist_ok=True)

    async def write(self, name: str, data: bytes) -> None:
        """Store ``data``; nobody sees the file before it is whole."""
        await self._try(lambda: self._write(self._path(name), data))

    async def size(self, name: str) -> int | None:
        """The file's bytes; None if there is none."""
        return await self._try(lambda: self._size(self._path(name)))

    async def read(self, name: str, start: int, end: int) -> AsyncIterator[bytes]:
        """The bytes from ``start`` to before ``end``, block by block.

        Raises:
            FileNotFoundError: there is none, or no longer.
        """
        for first in range(start, end, BLOCK_BYTES):
            last = min(end, first + BLOCK_BYTES)
            block = await self._try(partial(self._block, self._path(name), first, last))
            if block is None:
                raise FileNotFoundError(name)
            yield block

    async def remove(self, *names: str) -> None:
        """Remove those of the files that exist."""
        await self._try(lambda: self._remove(names))

    async def older_than(self, age_s: float) -> list[str]:
        """The names of all files that were last written so long ago."""
        return await self._try(lambda: self._older_than(age_s))

    def _write(self, path: str, data: bytes) -> None:
        with self._fs.open(path + UNFINISHED, "wb") as file:
            if isinstance(self._fs, LocalFileSystem):
                os.fchmod(file.fileno(), FILE_MODE)
            file.write(data)
            if isinstance(self._fs, LocalFileSystem):
                file.flush()
                os.fsync(file.fileno())
        self._fs.mv(path + UNFINISHED, path)

    def _size(self, path: str) -> int | None:
        try:
            return int(self._fs.info(path)["size"])
        except FileNotFoundError:
            return None

    def _block(self, path: str, start: int, end: int) -> bytes | None:
        try:
            return bytes(self._fs.cat_file(path, start=start, end=end))
        except FileNotFoundError:
            return None

    def _remove(self, names: tuple[str, ...]) -> None:
        for path in map(self._path, names):
            if self._fs.exists(path):
                self._fs.rm_file(path)

    def _older_than(self, age_s: float) -> list[str]:
        files = [entry for entry in self._fs.ls(self._root, detail=True) if entry["type"] == "file"]
        return [Path(file["name"]).name for file in files if _written_at(file) < time.time() - age_s]

    def _path(self, name: str) -> str:
        return f"{self._root.rstrip('/')}/{name}"

    async def _try(self, action: Callable[[], T]) -> T:
        try:
            return await asyncio.to_thread(action)
        except Exception as error:  # each store has its own kinds
            raise MediaUnavailable("the media store does not answer; try again", retry_after_s=5) from error


def _written_at(file: dict[str, Any]) -> float:
    """Stores name the time of the last change differently; a file without one is taken as new."""
    at = next(
        (file[key] for key in ("mtime", "LastModified", "last_modified", "updated", "created") if key in file), None
    )
    if isinstance(at, datetime):
        return at.timestamp()
    if isinstance(at, str):
        return datetime.fromisoformat(at).timestamp()
    return float(at) if isinstance(at, int | float) else time.time()
