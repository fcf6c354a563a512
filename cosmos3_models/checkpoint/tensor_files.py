"""The safetensors files of one checkpoint component, read by tensor name over all shards."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from cosmos3_models.checkpoint.configs import check_content, is_there, read_json
from cosmos3_models.errors import CheckpointError


class TensorSource(Protocol):
    """Named tensors on disk."""

    folder: Path

    def __iter__(self) -> Iterator[str]: ...

    def file(self, name: str) -> Path:
        """The file that holds a tensor."""

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape, without reading it."""

    def types(self, name: str) -> set[str]:
        """How the numbers of a tensor are stored, in safetensors' terms, without reading it."""

    def read(self, name: str) -> Tensor:
        """A tensor in host memory."""


class TensorFiles:
    """The ``TensorSource`` of one folder: one safetensors file, or the shards that an index lists.

    What ``read`` returns is mapped from the file where safetensors can do that, and shared with other processes.

    Raises:
        CheckpointError: a file is missing, truncated or no safetensors file, a download did not finish, two shards
            hold the same name, or the index lists a tensor that its shard does not hold.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._file: dict[str, Path] = {}
        self._open: dict[Path, Any] = {}
        if unfinished := sorted(folder.glob("*.incomplete")):
            raise CheckpointError(unfinished[0], "the download of this file did not finish")
        indexes = sorted(folder.glob("*.safetensors.index.json"))
        promised = _weight_map(indexes[0]) if indexes else {}
        shards = sorted({folder / shard for shard in promised.values()})
        _check_present(shards)
        for path in shards or sorted(folder.glob("*.safetensors")):
            self._add(path)
        if not self._file:
            raise CheckpointError(folder, "no safetensors file in this folder")
        for name, shard in promised.items():
            if self._file.get(name) != folder / shard:
                raise CheckpointError(indexes[0], f"promises tensor {name} in {shard}, which does not hold it")

    def __iter__(self) -> Iterator[str]:
        return iter(self._file)

    def file(self, name: str) -> Path:
        return self._file[name]

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._open[self._file[name]].get_slice(name).get_shape())

    def types(self, name: str) -> set[str]:
        return {self._open[self._file[name]].get_slice(name).get_dtype()}

    def read(self, name: str) -> Tensor:
        tensor: Tensor = self._open[self._file[name]].get_tensor(name)
        return tensor

    def _add(self, path: Path) -> None:
        check_content(path)
        try:
            self._open[path] = safe_open(path, framework="pt")
        except (SafetensorError, OSError) as error:
            raise CheckpointError(path, f"not a whole safetensors file ({error})") from None
        for name in self._open[path].keys():  # noqa: SIM118 - safe_open is no mapping
            if name in self._file:
                raise CheckpointError(path, f"tensor {name} is also in {self._file[name].name}")
            self._file[name] = path


class FoldedWeightNorm:
    """A ``TensorSource`` whose weight-normed tensors (g, v) appear as the plain weight g * v / |v|, in fp32.

    The formula is that of Salimans and Kingma (2016), with a norm for each output channel.

    Both of torch's spellings are read: ``weight_g``/``weight_v`` and ``parametrizations.weight.original0``/``1``.
    """

    def __init__(self, source: TensorSource) -> None:
        self.folder = source.folder
        self._source = source
        self._parts: dict[str, tuple[str, ...]] = {}
        for name in source:
            plain = re.sub(r"\.(weight_[gv]|parametrizations\.weight\.original[01])$", ".weight", name)
            self._parts[plain] = (*self._parts.get(plain, ()), name)
        for plain, parts in self._parts.items():
            if len(parts) == 1 and parts[0] != plain:
                raise CheckpointError(self.file(plain), f"tensor {parts[0]} has no counterpart for its weight norm")

    def __iter__(self) -> Iterator[str]:
        return iter(self._parts)

    def file(self, name: str) -> Path:
        return self._source.file(self._parts[name][0])

    def shape(self, name: str) -> tuple[int, ...]:
        return self._source.shape(max(self._parts[name]))

    def types(self, name: str) -> set[str]:
        return set().union(*map(self._source.types, self._parts[name]))

    def read(self, name: str) -> Tensor:
        parts = self._parts[name]
        if len(parts) == 1:
            return self._source.read(name)
        gain, direction = (self._source.read(part).float() for part in sorted(parts))  # g sorts before v, 0 before 1
        others = tuple(range(1, direction.ndim))
        return gain * direction / torch.linalg.vector_norm(direction, dim=others, keepdim=True).clamp_min(1e-12)


def _check_present(shards: list[Path]) -> None:
    if missing := [shard for shard in shards if not is_there(shard)]:
        more = f", and {len(missing) - 1} more of the {len(shards)} that the index lists" if len(missing) > 1 else ""
        raise CheckpointError(missing[0], f"the file is missing{more}")


def _weight_map(index: Path) -> dict[str, str]:
    names = read_json(index).get("weight_map")
    if not isinstance(names, dict) or not names:
        raise CheckpointError(index, "got no weight_map, expected one that names the file of every tensor")
    for shard in names.values():
        if not isinstance(shard, str) or Path(shard).name != shard:
            raise CheckpointError(index, f"got the file name {shard!r}, expected a file of this folder")
    return names
