"""Folders and files that only their owner can read: prompts and videos are private on a shared disk."""

import logging
from pathlib import Path

logger = logging.getLogger("ray.serve")

FOLDER_MODE, FILE_MODE = 0o700, 0o600
OTHERS = 0o077


def make_private_folder(folder: Path) -> None:
    """Create a folder and its missing parents for the owner alone.

    An existing folder keeps its mode, because others may use it as well; the log warns if they can read it.
    """
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    for path in reversed(missing):
        path.mkdir(mode=FOLDER_MODE, exist_ok=True)
    mode = folder.stat().st_mode
    if mode & OTHERS:
        logger.warning(f"Other users can read {folder} (mode {mode & 0o777:o}); chmod 700 prevents it.")


def make_private_file(file: Path) -> None:
    """Create a missing file, and let only the owner read and write it."""
    file.touch(mode=FILE_MODE)
    if file.stat().st_mode & OTHERS:
        file.chmod(FILE_MODE)
