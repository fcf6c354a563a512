"""Where the videos of a batch go: each with a record beside it, whole or not at all, and a list of all of them."""

import json
import sqlite3
import tempfile
import threading
from pathlib import Path
from typing import Any

from serve.client.batch.lines import InvalidBatch
from serve.client.batch.wanted import Wanted, file_hash
from serve.whole_files import WholeFiles

LIST = "metadata.jsonl"
"""The name under which Hugging Face's ``videofolder`` and ``imagefolder`` look for a list of files."""

LISTED = (
    "prompt",
    "negative_prompt",
    "seed",
    "model",
    "width",
    "height",
    "num_frames",
    "fps",
    "duration_s",
    "num_inference_steps",
    "guidance_scale",
    "generate_sound",
)
"""What the list repeats of a record: values of one type each, as tables have them."""


class Output:
    """A folder, which is made if its parent exists, or an fsspec URL.

    Raises:
        InvalidBatch: it cannot be used.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        try:
            self._files = WholeFiles(url)
            if self._files.folder is not None:
                self._files.folder.mkdir(exist_ok=True)  # a missing parent may be a typing error
        except (OSError, ValueError, ImportError) as error:
            raise InvalidBatch(f"{url}: {error}") from None

    def finished(self, video: Wanted) -> dict[str, Any] | None:
        """Return the record of a finished video; None if it is still to be made.

        Raises:
            InvalidBatch: its name is taken by something else.
        """
        text = self._files.read(f"{video.name}.json")
        if text is None:
            return None
        record = _record(text)
        if record.get("key") != video.key:
            found = f"line {record['line']} of another batch" if "line" in record else "something else"
            where = f"line {video.line}: {video.name}.json in {self._url} is of {found}, or the line has changed"
            raise InvalidBatch(f"{where}; choose another folder or name, or remove the file")
        return record if self._files.size(record["file_name"]) == record["bytes"] else None

    def save(self, video: Wanted, record: dict[str, Any], file: Path) -> dict[str, Any]:
        """Write a video, then its record, and return that.

        Args:
            record: the server's.
            file: with the mp4 or PNG.
        """
        suffix = ".png" if record["num_frames"] == 1 else ".mp4"
        saved = {
            "file_name": video.name + suffix,
            "bytes": file.stat().st_size,
            "sha256": file_hash(file),
            "line": video.line,
            "key": video.key,
            "request": video.request,
            "seed": record["seed"],
            "model": record["model"],
            "stage_durations": record["stage_durations"],
            "video": record,
        }
        self._files.write(saved["file_name"], file)
        self._files.write(f"{video.name}.json", json.dumps(saved, indent=1, ensure_ascii=False).encode())
        return saved

    def write_list(self, listed: "Listed") -> None:
        """Write the list of all finished videos."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / LIST
            listed.write(path)
            self._files.write(LIST, path)


class Listed:
    """The names and finished videos of a batch, in a temporary file: there may be a million."""

    def __init__(self) -> None:
        self._database = sqlite3.connect("", check_same_thread=False)  # SQLite's own temporary file
        self._database.execute("create table names (name text primary key, line integer) without rowid")
        self._database.execute("create table videos (place integer primary key, row text)")
        self._lock = threading.Lock()

    def close(self) -> None:
        """Remove the temporary file."""
        self._database.close()

    def name(self, name: str, line: int) -> int | None:
        """Note the name of a line. Return the earlier line that has it, in whatever case, if there is one."""
        insert = "insert into names values (?, ?) on conflict do nothing"
        if self._database.execute(insert, (name.casefold(), line)).rowcount:
            return None
        found = self._database.execute("select line from names where name = ?", (name.casefold(),)).fetchone()
        return int(found[0])

    def add(self, place: int, record: dict[str, Any]) -> None:
        """Note a finished video by its place in the batch and its saved record."""
        text = json.dumps(_row(record), ensure_ascii=False)
        with self._lock:
            self._database.execute("insert or replace into videos values (?, ?)", (place, text))

    def write(self, path: Path) -> None:
        """Write the videos in their order, one a line."""
        with self._lock, path.open("w", encoding="utf-8") as file:
            for (text,) in self._database.execute("select row from videos order by place"):
                file.write(f"{text}\n")


def _record(text: bytes) -> dict[str, Any]:
    try:
        record = json.loads(text)
    except ValueError:
        return {}
    return record if isinstance(record, dict) else {}


def _row(record: dict[str, Any]) -> dict[str, Any]:
    values = {name: record["video"].get(name) for name in LISTED}
    for name in ("prompt", "negative_prompt"):
        if not isinstance(values[name], str | None):  # a structured caption
            values[name] = json.dumps(values[name], ensure_ascii=False)
    return {"file_name": record["file_name"], **values, **{name: record[name] for name in ("line", "bytes", "sha256")}}
