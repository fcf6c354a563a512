"""The tensors of a checkpoint's files against those that a module needs, by the headers of the files."""

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import pairwise
from pathlib import Path

from cosmos3_models.checkpoint.tensor_files import TensorSource
from cosmos3_models.errors import CheckpointError

PLAIN_TYPES = ("F32", "F16", "BF16")
"""Types that weights are read in. Integers and 8-bit floats would need scales to be weights."""

LISTED = 10  # groups of tensors with one kind of problem; the rest is counted

Shapes = Mapping[str, tuple[int, ...]]


def differences(expected: Shapes, source: TensorSource, skipped: tuple[str, ...]) -> Iterator[CheckpointError]:
    """Yield what keeps the files from filling the expected tensors; names that differ in numbers alone share an error.

    Args:
        expected: the shape of every needed tensor by its name in the files.
        skipped: regular expressions for the tensors that the files may hold besides.
    """
    both = sorted(set(expected).intersection(source))
    mistyped = {name: other for name in both if (other := source.types(name).difference(PLAIN_TYPES))}
    # Types come before names: the scales of quantised weights are unexpected tensors.
    yield from _grouped(source, mistyped, "tensor", lambda name: f": {_type_problem(min(mistyped[name]))}")
    yield from _grouped(source, sorted(set(expected).difference(source)), "missing tensor", lambda _: "")
    unexpected = [name for name in source if name not in expected and not re.match("|".join(skipped), name)]
    yield from _grouped(source, sorted(unexpected), "unexpected tensor", lambda _: "")
    misshapen = [name for name in both if source.shape(name) != expected[name]]
    yield from _grouped(
        source,
        misshapen,
        "tensor",
        lambda name: f": got shape {list(source.shape(name))}, expected {list(expected[name])}",
    )


def _type_problem(got: str) -> str:
    expected = f"expected {', '.join(PLAIN_TYPES)}"
    why = "" if got == "F64" else ", because scales of quantised weights are not read"
    return f"got numbers of type {got}, {expected}{why}"


def _grouped(
    source: TensorSource, names: Iterable[str], what: str, detail: Callable[[str], str]
) -> Iterator[CheckpointError]:
    """One error for the tensors whose names differ in numbers alone and whose problem is the same."""
    groups: dict[tuple[str, str], list[str]] = defaultdict(list)
    for name in names:
        groups[re.sub(r"\d+", "#", name), detail(name)].append(name)
    listed = list(groups.items())
    for (_, problem), tensors in listed[:LISTED]:
        count = f" ({len(tensors)} tensors)" if len(tensors) > 1 else ""
        yield CheckpointError(_place(source, tensors), f"{what} {pattern_of(tensors)}{count}{problem}")
    if rest := [name for _, tensors in listed[LISTED:] for name in tensors]:
        yield CheckpointError(source.folder, f"{what}: {len(rest)} more, such as {rest[0]}")


def _place(source: TensorSource, names: list[str]) -> Path:
    """The file that holds all of them, or else the folder."""
    files = {source.file(name) if name in set(source) else source.folder for name in names}
    return files.pop() if len(files) == 1 else source.folder


def pattern_of(names: list[str]) -> str:
    """Names that differ in numbers alone as one, such as ``layers.{0-35}.mlp.weight``."""
    first = re.split(r"(\d+)", names[0])
    parts = zip(*(re.split(r"(\d+)", name) for name in names), strict=True)
    return "".join(
        part if len(set(column)) == 1 else _ranges({int(number) for number in column})
        for part, column in zip(first, parts, strict=True)
    )


def _ranges(numbers: set[int]) -> str:
    ordered = sorted(numbers)
    starts = [ordered[0], *(b for a, b in pairwise(ordered) if b > a + 1)]
    ends = [*(a for a, b in pairwise(ordered) if b > a + 1), ordered[-1]]
    return f"{{{','.join(str(a) if a == b else f'{a}-{b}' for a, b in zip(starts, ends, strict=True))}}}"
