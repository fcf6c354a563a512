"""Where the files of finished jobs are: a folder, or any object store that fsspec knows. A file is whole or absent."""

import asyncio
import logging
import os
import secrets
import shutil
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import fsspec
from fsspec.implementations.local import LocalFileSystem

from serve.errors import MediaUnavailable
from serve.jobs.private_files import FILE_MODE, FOLDER_MODE, make_private_folder

T = TypeVar("T")

logger = logging.getLogger("ray.serve")

UNFINISHED = ".part"
TIMEOUT_S = 60.0  # of one call to the store
SLOWEST_BYTES_PER_S = 1 << 20  # a slower write is given up
BLOCK_BYTES = 1 << 20  # read at a time, in one request to an object store
THREADS = 16  # of our own: a store that hangs must not block the threads of other work
WHOLE_OR_ABSENT = {"abfs", "abfss", "adl", "az", "gcs", "gs", "memory", "oci", "r2", "s3", "s3a"}
"""Protocols of stores in which an unfinished file is invisible, so that it needs no temporary name."""


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
        self._fs, self._root = fsspec.url_to_fs(url, use_listings_cache=False)
        self._threads = ThreadPoolExecutor(THREADS, "media")
        self._make_root()

    async def write(self, name: str, data: bytes) -> None:
        """Store ``data`` as ``name`` or ``folder/name``; the file is invisible until it is whole."""
        await self._try(lambda: self._write(self._path(name), data), TIMEOUT_S + len(data) / SLOWEST_BYTES_PER_S)

    async def write_file(self, name: str, path: Path) -> None:
        """Store the file at ``path`` as ``folder/name``, block by block; it is invisible until it is whole."""
        timeout_s = TIMEOUT_S + path.stat().st_size / SLOWEST_BYTES_PER_S
        await self._try(lambda: self._write(self._path(name), path), timeout_s)

    async def size(self, name: str) -> int | None:
        """Return the file's size in bytes; None if there is no such file."""
        return await self._try(lambda: self._size(self._path(name)))

    async def read(self, name: str, start: int, end: int) -> AsyncIterator[bytes]:
        """Yield the bytes from ``start`` to before ``end``, block by block.

        Raises:
            FileNotFoundError: there is no such file, or no longer.
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

    async def older_than(self, age_s: float, folder: str) -> list[str]:
        """Return ``folder/name`` of all files in a folder that were last written at least ``age_s`` seconds ago."""
        return await self._try(lambda: self._older_than(age_s, folder))

    def _make_root(self) -> None:
        if isinstance(self._fs, LocalFileSystem):
            return make_private_folder(Path(self._root))
        try:
            self._fs.makedirs(self._root, exist_ok=True)
        except Exception:
            # A store may refuse to create a folder that exists, and still accept files.
            logger.warning("The media store refused to create its folder; files are still written.", exc_info=True)

    def _write(self, path: str, source: bytes | Path) -> None:
        if isinstance(self._fs, LocalFileSystem):
            _write_to_disk(Path(path), Path(self._root), source)
        elif self._shows_unfinished(source):
            part = _unfinished(path)
            self._fs.makedirs(path.rpartition("/")[0], exist_ok=True)
            try:
                self._send(part, source)
                self._fs.mv(part, path)
            except Exception:
                with suppress(Exception):
                    self._fs.rm_file(part)
                raise
        else:
            self._send(path, source)

    def _shows_unfinished(self, source: bytes | Path) -> bool:
        """Tell whether a file is visible before it is whole; memory shows one that is sent block by block."""
        protocols = _protocols(self._fs)
        return WHOLE_OR_ABSENT.isdisjoint(protocols) or (isinstance(source, Path) and "memory" in protocols)

    def _send(self, path: str, source: bytes | Path) -> None:
        if isinstance(source, Path):
            self._fs.put_file(str(source), path)
        else:
            self._fs.pipe_file(path, source)

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

    def _older_than(self, age_s: float, folder: str) -> list[str]:
        if not self._fs.exists(self._path(folder)):
            return []
        files = [entry for entry in self._fs.ls(self._path(folder), detail=True) if entry["type"] == "file"]
        old = [file for file in files if _written_at(file) < time.time() - age_s]
        return [f"{folder}/{Path(file['name']).name}" for file in old]

    def _path(self, name: str) -> str:
        return f"{self._root.rstrip('/')}/{name}"

    async def _try(self, action: Callable[[], T], timeout_s: float = TIMEOUT_S) -> T:
        try:
            async with asyncio.timeout(timeout_s):
                return await asyncio.get_running_loop().run_in_executor(self._threads, action)
        except Exception as error:  # each store has its own kinds
            raise MediaUnavailable("the media store does not answer; try again", retry_after_s=5) from error


def _write_to_disk(path: Path, root: Path, source: bytes | Path) -> None:
    """Write a file that is whole even if the machine loses its power the moment after."""
    _make_folders(path.parent, root)
    part = Path(_unfinished(str(path)))
    try:
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, FILE_MODE), "wb") as file:
            if isinstance(source, Path):
                with source.open("rb") as opened:
                    shutil.copyfileobj(opened, file, BLOCK_BYTES)
            else:
                file.write(source)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError:
        with suppress(OSError):
            part.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def _make_folders(folder: Path, root: Path) -> None:
    """Make the folders below the root, but not the root, which may be an unmounted disk."""
    if folder == root or folder.is_dir():
        return
    _make_folders(folder.parent, root)
    folder.mkdir(mode=FOLDER_MODE, exist_ok=True)
    _sync_folder(folder.parent)


def _sync_folder(folder: Path) -> None:
    """Write the folder's list of names to disk, where the system can."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:  # not on Windows
        return
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _unfinished(path: str) -> str:
    """Return a new name for each attempt: an abandoned one may still be writing."""
    return f"{path}.{secrets.token_hex(4)}{UNFINISHED}"


def _protocols(filesystem: Any) -> set[str]:
    names = filesystem.protocol
    return {names} if isinstance(names, str) else set(names)


def _written_at(file: dict[str, Any]) -> float:
    """Return the time of the last change, which stores name differently; a file without one counts as new."""
    at = next(
        (file[key] for key in ("mtime", "LastModified", "last_modified", "updated", "created") if key in file), None
    )
    if isinstance(at, datetime):
        return at.timestamp()
    if isinstance(at, str):
        return datetime.fromisoformat(at).timestamp()
    return float(at) if isinstance(at, int | float) else time.time()
