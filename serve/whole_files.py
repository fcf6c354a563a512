"""Files in a folder, or in any object store that fsspec knows. A file is whole or absent."""

import os
import secrets
import shutil
import time
from collections.abc import Iterable
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

UNFINISHED = ".part"
BLOCK_BYTES = 1 << 20  # copied at a time
WHOLE_OR_ABSENT = {"abfs", "abfss", "adl", "az", "gcs", "gs", "memory", "oci", "r2", "s3", "s3a"}
"""Protocols of stores in which an unfinished file is invisible, so that it needs no temporary name."""


class WholeFiles:
    """Files by name. Every method raises what the store raises.

    Args:
        url: a path or an fsspec URL, such as ``s3://bucket/videos``. Its folder is made by ``make_root`` alone.
        modes: of files and folders on a disk, before the umask.

    Attributes:
        folder: the path on this machine; None of a store.
    """

    def __init__(self, url: str, modes: tuple[int, int] = (0o666, 0o777)) -> None:
        self._fs, self._root = fsspec.url_to_fs(url, use_listings_cache=False)
        self._modes = modes
        self.folder = Path(self._root) if isinstance(self._fs, LocalFileSystem) else None

    def make_root(self) -> None:
        """Make the folder. A store may refuse that where it exists, and still take files."""
        self._fs.makedirs(self._root, exist_ok=True)

    def write(self, name: str, source: bytes | Path) -> None:
        """Store bytes or a file as ``name`` or ``folder/name``; it is invisible until it is whole."""
        path = self._path(name)
        if self.folder is not None:
            self._write_to_disk(Path(path), source)
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

    def size(self, name: str) -> int | None:
        """Return the file's size in bytes; None if there is no such file."""
        try:
            return int(self._fs.info(self._path(name))["size"])
        except FileNotFoundError:
            return None

    def read(self, name: str, start: int | None = None, end: int | None = None) -> bytes | None:
        """Return the bytes from ``start`` to before ``end``, by default all; None if there is no such file."""
        try:
            return bytes(self._fs.cat_file(self._path(name), start=start, end=end))
        except FileNotFoundError:
            return None

    def remove(self, names: Iterable[str]) -> None:
        """Remove those of the files that exist."""
        for path in map(self._path, names):
            if self._fs.exists(path):
                self._fs.rm_file(path)

    def older_than(self, age_s: float, folder: str) -> list[str]:
        """Return ``folder/name`` of all files in a folder that were last written at least ``age_s`` seconds ago."""
        if not self._fs.exists(self._path(folder)):
            return []
        files = [entry for entry in self._fs.ls(self._path(folder), detail=True) if entry["type"] == "file"]
        old = [file for file in files if _written_at(file) < time.time() - age_s]
        return [f"{folder}/{Path(file['name']).name}" for file in old]

    def _shows_unfinished(self, source: bytes | Path) -> bool:
        """Tell whether a file is visible before it is whole; memory shows one that is sent block by block."""
        protocols = _protocols(self._fs)
        return WHOLE_OR_ABSENT.isdisjoint(protocols) or (isinstance(source, Path) and "memory" in protocols)

    def _send(self, path: str, source: bytes | Path) -> None:
        if isinstance(source, Path):
            self._fs.put_file(str(source), path)
        else:
            self._fs.pipe_file(path, source)

    def _path(self, name: str) -> str:
        return f"{self._root.rstrip('/')}/{name}"

    def _write_to_disk(self, path: Path, source: bytes | Path) -> None:
        """Write a file that is whole even if the machine loses its power the moment after."""
        self._make_folders(path.parent)
        part = Path(_unfinished(str(path)))
        try:
            with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, self._modes[0]), "wb") as file:
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

    def _make_folders(self, folder: Path) -> None:
        """Make the folders below the root, but not the root, which may be an unmounted disk."""
        if folder == self.folder or folder.is_dir():
            return
        self._make_folders(folder.parent)
        folder.mkdir(mode=self._modes[1], exist_ok=True)
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
