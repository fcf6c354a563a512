"""The videos that a batch asks for: its lines, repeated, and the key by which the server knows each of them again."""

import hashlib
import json
import random
from array import array
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from cosmos3_models import InvalidInput
from serve.client.batch.lines import Line, Lines

KEY_VERSION = 1
REMEMBERED_FILES = 256  # hashes of pictures and clips: many lines may start from the same one


class Options(NamedTuple):
    """How a batch is made.

    Attributes:
        repeat: videos of each line. A line with a seed gets that one and those that follow it.
        seeds: of each line, one video with every one of these; then no line may have a seed.
        shuffle: whether the videos are made in a random order.
        max_failures: videos that may fail before the batch stops; None for any number.
    """

    repeat: int = 1
    seeds: Sequence[int] = ()
    shuffle: bool = False
    max_failures: int | None = 10


class Wanted(NamedTuple):
    """A video of a batch.

    Attributes:
        line: number of its line.
        name: of its files.
        key: idempotency key, which follows from the number and the content of the line alone.
        fields: of the request.
        reference: the picture or clip that it starts from, with the SHA-256 of its bytes.
    """

    line: int
    name: str
    key: str
    fields: dict[str, Any]
    reference: tuple[Path, str] | None

    @property
    def request(self) -> dict[str, Any]:
        """The fields as they are recorded, which names the file that the video starts from."""
        if self.reference is None:
            return self.fields
        path, sha256 = self.reference
        return self.fields | {"input_reference": {"file": path.name, "sha256": sha256}}


class Plan:
    """Every video of a batch, by its place: those of the first line come first.

    Args:
        lines: which have been read.
    """

    def __init__(self, lines: Lines, options: Options) -> None:
        self._lines, self._options = lines, options
        self._variants = len(options.seeds) or options.repeat

    def __len__(self) -> int:
        return len(self._lines) * self._variants

    def order(self) -> Sequence[int]:
        """The places in the order in which the videos are made."""
        if not self._options.shuffle:
            return range(len(self))
        places = array("Q", range(len(self)))
        random.shuffle(places)
        return places

    def at(self, place: int) -> Wanted:
        """Return the video at a place.

        Raises:
            InvalidInput: the file of the batch or a reference has changed since it was checked.
        """
        index, variant = divmod(place, self._variants)
        return wanted(self._lines.at(index), self._options, variant)


def wanted(line: Line, options: Options, variant: int) -> Wanted:
    """Return one of the videos of a line."""
    fields, name, repetition = line.fields, line.name, variant
    if options.seeds:
        seed = options.seeds[variant]
        fields, name, repetition = fields | {"seed": seed}, f"{name}-seed{seed}", 0
    elif options.repeat > 1:
        name = f"{name}-{variant + 1}"
        if "seed" in fields:
            fields = fields | {"seed": repeated_seed(fields["seed"]) + variant}
    sha256 = None if line.reference is None else file_hash(line.reference)
    content = json.dumps([KEY_VERSION, line.number, repetition, fields, sha256], sort_keys=True)
    reference = None if line.reference is None or sha256 is None else (line.reference, sha256)
    return Wanted(line.number, name, hashlib.sha256(content.encode()).hexdigest(), fields, reference)


def repeated_seed(seed: object) -> int:
    """The seed of a line that is repeated."""
    if type(seed) is not int:
        raise InvalidInput("seed", seed, "a number", "the repetitions of a line count on from it")
    return seed


def file_hash(path: Path) -> str:
    """Return the SHA-256 of a file.

    Raises:
        InvalidInput: it cannot be read.
    """
    try:
        state = path.stat()
        return _file_hash(path, state.st_mtime_ns, state.st_size)
    except OSError as error:
        raise unreadable(path, error) from None


def unreadable(path: Path, error: OSError) -> InvalidInput:
    """The error of a picture or clip that is not there."""
    return InvalidInput("input_reference", str(path), "a file that you may read", str(error.strerror).lower())


@lru_cache(REMEMBERED_FILES)
def _file_hash(path: Path, changed_ns: int, size: int) -> str:  # noqa: ARG001  # a changed file is another one
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
