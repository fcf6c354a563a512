"""Everything that is wrong with a checkpoint folder, and what it holds, from configs and headers alone."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from cosmos3_models.checkpoint.folder import COMPONENTS, Checkpoint, checkpoint_folder, hub_name
from cosmos3_models.checkpoint.hub import headers
from cosmos3_models.checkpoint.loading import weight_problems
from cosmos3_models.checkpoint.tensor_files import TensorFiles
from cosmos3_models.errors import CheckpointError
from cosmos3_models.text.prompt import PromptEncoder


class Contents(NamedTuple):
    """What the files of one component hold.

    Attributes:
        tensors: their number.
        types: how many tensors are of each type, in safetensors' terms.
        file_bytes: size of the files.
    """

    tensors: int
    types: Counter[str]
    file_bytes: int


@contextmanager
def headers_of(path: str) -> Iterator[Path]:
    """The checkpoint's folder or, of a model on the Hugging Face Hub, configs and headers in a temporary one.

    Raises:
        CheckpointError: the files are neither cached nor can be downloaded.
    """
    if name := hub_name(path):
        with headers(name) as folder:
            yield folder
    else:
        yield checkpoint_folder(path)


def checkpoint_problems(folder: Path) -> list[CheckpointError]:
    """List the errors for which a stage would refuse the folder. No tensor is read.

    While a config is wrong, it is unknown which tensors are needed, and only broken files are found besides.
    """
    found = []
    try:
        checkpoint = Checkpoint.open(folder)
    except CheckpointError as error:
        return [error, *(_broken_files(folder) if folder.is_dir() else ())]
    try:
        PromptEncoder.from_checkpoint(checkpoint.folder)
    except CheckpointError as error:
        found.append(error)
    return [*found, *weight_problems(checkpoint)]


def contents(checkpoint: Checkpoint) -> dict[str, Contents]:
    """Count what the components of a checkpoint without problems hold, by their folder's name."""
    folders = [checkpoint.folder / name for name in COMPONENTS]
    return {folder.name: _contents(TensorFiles(folder)) for folder in folders if folder.is_dir()}


def _contents(files: TensorFiles) -> Contents:
    types = Counter(kind for name in files for kind in files.types(name))
    paths = {files.file(name) for name in files}
    return Contents(len(list(files)), types, sum(path.stat().st_size for path in paths))


def _broken_files(folder: Path) -> Iterator[CheckpointError]:
    for component in COMPONENTS:
        if (folder / component).is_dir():
            try:
                TensorFiles(folder / component)
            except CheckpointError as error:
                yield error
