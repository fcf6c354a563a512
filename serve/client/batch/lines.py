"""The file of a batch: one JSON request a line. Sixteen bytes a line are kept of it, whatever its lines hold."""

import json
import re
import threading
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from cosmos3_models import InvalidInput
from serve.inputs.reference import FILE_ID

MAX_LINE_BYTES = 1 << 20
"""The server's limit of a body without its file."""

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
REFERENCE = "input_reference"
REFERENCE_FORMS = 'the path of a picture or clip, or {"file_id": "video_..."}'


class InvalidBatch(Exception):
    """Nothing was started, because of the file or of the folder for the videos."""


class Line(NamedTuple):
    """A request of the file.

    Attributes:
        number: of the line, from 1.
        name: of its video.
        fields: those of a request.
        reference: the picture or clip beside the file that the video starts from.
    """

    number: int
    name: str
    fields: dict[str, Any]
    reference: Path | None


class Lines:
    """The lines of a file that are not empty. It stays open, so that an editor that replaces it changes nothing here.

    Args:
        path: whose folder is that of relative references.

    Raises:
        InvalidBatch: the file cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self._folder = path.parent
        try:
            self._file = path.open("rb")
        except OSError as error:
            raise InvalidBatch(f"{path}: {error.strerror}") from None
        self._starts = array("Q")
        self._numbers = array("Q")
        self._lock = threading.Lock()

    def __len__(self) -> int:
        """The number of lines that were read."""
        return len(self._starts)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def read(self) -> Iterator[tuple[int, Line | InvalidInput]]:
        """Read the whole file once: the number of each line, and the line or what is wrong with it."""
        self._file.seek(0)
        number = 0
        while text := self._file.readline(MAX_LINE_BYTES):
            start, number = self._file.tell() - len(text), number + 1
            whole = self._skip_rest(text)
            if text.strip():
                self._starts.append(start)
                self._numbers.append(number)
                yield number, self._line(number, text) if whole else too_long()

    def at(self, index: int) -> Line:
        """Return one of the lines that were read, by its place among them.

        Raises:
            InvalidInput: the file has changed since, and the line is invalid.
        """
        with self._lock:
            self._file.seek(self._starts[index])
            text = self._file.readline(MAX_LINE_BYTES)
        return parse(int(self._numbers[index]), text, self._folder)

    def _line(self, number: int, text: bytes) -> Line | InvalidInput:
        try:
            return parse(number, text, self._folder)
        except InvalidInput as error:
            return error

    def _skip_rest(self, text: bytes) -> bool:
        """Tell whether a piece is a whole line, and go to the next line if it is not."""
        whole = True
        while len(text) == MAX_LINE_BYTES and not text.endswith(b"\n"):
            text, whole = self._file.readline(MAX_LINE_BYTES), False
        return whole


def parse(number: int, text: bytes, folder: Path) -> Line:
    """Return the request of a line: an object with the fields of a request and ``name``, or a prompt alone.

    Args:
        folder: of relative references.

    Raises:
        InvalidInput: it is none. The fields are not checked here.
    """
    fields = _object(text)
    name = fields.pop("name", f"{number:06d}")
    if not isinstance(name, str) or not NAME.fullmatch(name):
        expected = "up to 100 letters, digits and ._-, the first of them a letter or a digit"
        raise InvalidInput("name", name, expected, "files are named so")
    reference = fields.get(REFERENCE)
    if isinstance(reference, str):
        del fields[REFERENCE]
        return Line(number, name, fields, folder / reference)
    if reference is not None and not (isinstance(reference, dict) and set(reference) == {FILE_ID}):
        raise InvalidInput(REFERENCE, reference, REFERENCE_FORMS, "a line is short, and names its file")
    return Line(number, name, fields, None)


def too_long() -> InvalidInput:
    """The error of a line over the limit."""
    return InvalidInput("line", "a longer one", f"at most {MAX_LINE_BYTES} bytes", "the server takes no larger request")


def _object(text: bytes) -> dict[str, Any]:
    try:
        value = json.loads(text.decode("utf-8-sig"), object_pairs_hook=_once)
        json.dumps(value, ensure_ascii=False).encode()  # half a surrogate pair is not text
    except (ValueError, RecursionError) as error:
        raise InvalidInput("line", text[:60].decode(errors="replace"), "a JSON object", f"{error}") from None
    if isinstance(value, str):
        return {"prompt": value}
    if not isinstance(value, dict):
        raise InvalidInput("line", value, 'a JSON object such as {"prompt": "..."}', "a line is a request")
    return value


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)} is there twice")
    return fields
