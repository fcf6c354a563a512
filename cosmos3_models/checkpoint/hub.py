"""A checkpoint by its name on the Hugging Face Hub: found in the Hub's cache, or downloaded into it."""

import errno
import json
import logging
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from cosmos3_models.errors import CheckpointError

NAME = re.compile(r"(?P<repository>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*?)(@(?P<revision>[^@\s]+))?")
COMMIT = re.compile(r"[0-9a-f]{40}")
TRANSFORMER_WEIGHTS = "transformer/*.safetensors"
WEIGHTS = (TRANSFORMER_WEIGHTS, "vae/*.safetensors", "sound_tokenizer/*.safetensors")
SMALL_FILES = (
    "transformer/*.json",
    "vae/*.json",
    "sound_tokenizer/*.json",
    "scheduler/scheduler_config.json",
    "text_tokenizer/*",
    "generation_config.json",
    "assets/*.json",
)
READERS = 8  # headers at a time
WORTH_A_LINE = 10**8  # bytes

log = logging.getLogger(__name__)


class HubName(NamedTuple):
    """``owner/name``, perhaps with a branch, tag or commit: ``owner/name@revision``."""

    repository: str
    revision: str | None = None

    def __str__(self) -> str:
        return self.repository if self.revision is None else f"{self.repository}@{self.revision}"

    @classmethod
    def parse(cls, text: str) -> "HubName | None":
        """Read a name; None if the text cannot be one, as an absolute path cannot."""
        found = NAME.fullmatch(text)
        return cls(found["repository"], found["revision"]) if found else None


def pinned(name: HubName) -> HubName:
    """The name with the commit that its revision means: in this machine's cache or, if it is not there, on the Hub.

    Raises:
        CheckpointError: the Hub does not answer, or has no such model or revision.
    """
    from huggingface_hub import HfApi

    if name.revision and COMMIT.fullmatch(name.revision):
        return name
    if cached := _cached(name, SMALL_FILES):
        return name._replace(revision=cached.name)
    try:
        with _explained(name):
            return name._replace(revision=HfApi().model_info(name.repository, revision=name.revision).sha)
    except CheckpointError:
        if (unlisted := _unlisted(name)) is None:
            raise
        return name._replace(revision=unlisted.name)


def snapshot(name: HubName, *, transformer: bool = True) -> Path:
    """The folder in the Hub's cache that holds the files, which are downloaded unless they are there.

    Processes of one machine share the cache, and each file is downloaded once.

    Args:
        transformer: whether the weights of the transformer, nine tenths of all bytes, are needed.

    Raises:
        CheckpointError: the files are not cached, and licence, disk or network forbid a download.
    """
    patterns = tuple(pattern for pattern in WEIGHTS if transformer or pattern != TRANSFORMER_WEIGHTS) + SMALL_FILES
    return _cached(name, patterns) or _downloaded(name, patterns)


@contextmanager
def headers(name: HubName) -> Iterator[Path]:
    """A folder with the configs and the headers of the weights, for a check in seconds: the cached one if there is one.

    Otherwise it is temporary, and holes in its files stand for the weights, of which nothing is downloaded.

    Raises:
        CheckpointError: the files are not cached, and licence, disk or network forbid a download.
    """
    if cached := _cached(name, WEIGHTS + SMALL_FILES):
        yield cached
        return
    with tempfile.TemporaryDirectory() as temporary:
        try:
            folder = _with_headers(name, Path(temporary))
        except CheckpointError:
            if (unlisted := _unlisted(name)) is None:
                raise
            folder = unlisted
        yield folder


def _with_headers(name: HubName, temporary: Path) -> Path:
    small = _downloaded(name, SMALL_FILES)
    folder = temporary / small.name
    shutil.copytree(small, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    with _explained(name):
        _write_headers(name._replace(revision=small.name), folder)
    return folder


def _cached(name: HubName, patterns: tuple[str, ...]) -> Path | None:
    """The snapshot, if a listing of its files in the cache shows that it is complete."""
    folder = _local(name, patterns)
    return folder if folder is not None and _is_listed(folder) else None


def _unlisted(name: HubName) -> Path | None:
    """A snapshot without a listing, which earlier releases of the library left: the Hub alone knows what is missing."""
    folder = _local(name, ())
    return None if folder is None or _is_listed(folder) else folder


def _local(name: HubName, patterns: tuple[str, ...]) -> Path | None:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    options: dict[str, Any] = {"revision": name.revision, "allow_patterns": [*patterns], "local_files_only": True}
    try:
        return Path(snapshot_download(name.repository, **options))
    except LocalEntryNotFoundError:
        return None


def _is_listed(folder: Path) -> bool:
    return (folder.parents[1] / "trees" / f"{folder.name}.json").exists()


def _downloaded(name: HubName, patterns: tuple[str, ...]) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils import disable_progress_bars

    if not sys.stderr.isatty():
        disable_progress_bars()
    with _explained(name):
        _check_disk(name, _missing_bytes(name, patterns))
        # While the Hub cannot be reached, this gives the cached files as they are, also without a listing.
        return Path(snapshot_download(name.repository, revision=name.revision, allow_patterns=[*patterns]))


def _missing_bytes(name: HubName, patterns: tuple[str, ...]) -> int:
    """Size of the files that are not cached; 0 if the Hub does not say, for the download will then say why."""
    from huggingface_hub import HfApi, try_to_load_from_cache
    from huggingface_hub.errors import HTTPError
    from huggingface_hub.utils import filter_repo_objects

    try:
        info = HfApi().model_info(name.repository, revision=name.revision, files_metadata=True)
    except (HTTPError, OSError):
        return 0
    files = {file.rfilename: file.size or 0 for file in info.siblings or ()}
    wanted = filter_repo_objects(files, allow_patterns=[*patterns])
    return sum(
        files[file]
        for file in wanted
        if not isinstance(try_to_load_from_cache(name.repository, file, revision=info.sha), str)
    )


def _check_disk(name: HubName, needed: int) -> None:
    """Raise ``CheckpointError`` before a download that the cache's disk has no room for."""
    cache = _cache()
    cache.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(cache).free
    if needed > free:
        problem = f"the download takes {needed / 1e9:.1f} GB, but the disk of {cache} has {free / 1e9:.1f} GB free"
        raise CheckpointError(name, f"{problem}; HF_HOME names another place")
    if needed > WORTH_A_LINE:
        log.warning("Downloading %.1f GB of %s to %s.", needed / 1e9, name, cache)


def _write_headers(name: HubName, folder: Path) -> None:
    from huggingface_hub import HfApi
    from huggingface_hub.utils import filter_repo_objects

    files = HfApi().list_repo_files(name.repository, revision=name.revision)
    with ThreadPoolExecutor(READERS) as readers:
        wanted = filter_repo_objects(files, allow_patterns=[*WEIGHTS])
        list(readers.map(lambda file: _write_header(name, file, folder / file), wanted))


def _write_header(name: HubName, file: str, target: Path) -> None:
    """Write a safetensors file with the header of the one on the Hub and a hole in place of the tensors."""
    from huggingface_hub import HfApi

    found = HfApi().parse_safetensors_file_metadata(name.repository, file, revision=name.revision).tensors
    tensors = {
        tensor: {"dtype": info.dtype, "shape": info.shape, "data_offsets": info.data_offsets}
        for tensor, info in found.items()
    }
    header = json.dumps(tensors).encode()
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("wb") as opened:
        opened.write(len(header).to_bytes(8, "little") + header)
        opened.truncate(opened.tell() + max((info.data_offsets[1] for info in found.values()), default=0))


def _cache() -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


@contextmanager
def _explained(name: HubName) -> Iterator[None]:
    """Turn what the library raises into a ``CheckpointError`` of one sentence."""
    from huggingface_hub import errors

    try:
        yield
    except CheckpointError:
        raise
    except (errors.HTTPError, errors.XetDownloadError, errors.SafetensorsParsingError, OSError, ValueError) as error:
        cause = error.__cause__ if isinstance(error, errors.LocalEntryNotFoundError) and error.__cause__ else error
        raise CheckpointError(name, _problem(name, cause)) from None


def _problem(name: HubName, error: BaseException) -> str:
    from huggingface_hub import constants, errors

    hub, cache = constants.ENDPOINT, _cache()
    match error:
        case errors.GatedRepoError():
            page = f"{hub}/{name.repository}"
            return f"accept the licence at {page}, and set HF_TOKEN on every node to a token of the same account"
        case errors.RepositoryNotFoundError():
            return f"{hub} has no such model, or it is private and needs a token in HF_TOKEN on every node"
        case errors.RevisionNotFoundError():
            return f"{hub} has the model, but no revision {name.revision or 'main'}"
        case errors.OfflineModeIsEnabled():
            return f"the files are not in {cache}, and HF_HUB_OFFLINE forbids a download"
        case errors.HfHubHTTPError():
            return f"{hub} refused the download with HTTP status {error.response.status_code}"
        case OSError(errno=errno.ENOSPC):
            return f"the disk of {cache} is full; HF_HOME names another place"
        case OSError(errno=int(), filename=str(file)):
            return f"{file} in the cache cannot be used ({error.strerror})"
        case errors.SafetensorsParsingError() | ValueError():
            return f"{hub} gives no usable files ({_first_line(error)})"
    return f"the files are not in {cache}, and {hub} cannot be reached ({_first_line(error)})"


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
