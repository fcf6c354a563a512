"""Folders and files of this server on a disk that others use too: prompts and videos are the owner's alone."""

import logging
from pathlib import Path

logger = logging.getLogger("ray.serve")

FOLDER_MODE, FILE_MODE = 0o700, 0o600
OTHERS = 0o077


def make_private_folder(folder: Path) -> None:
    """Make it, and the folders above that are missing, for the owner alone.

    A folder that is there already stays as it is, because it may serve others as well; the log says so.
    """
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    for path in reversed(missing):
        path.mkdir(mode=FOLDER_MODE, exist_ok=True)
    mode = folder.stat().st_mode
    if mode & OTHERS:
        logger.warning(f"{folder}: others may look into it (mode {mode & 0o777:o}); chmod 700 ends that.")


def make_private_file(file: Path) -> None:
    """Make it, if it is missing, and take it from everybody but the owner."""
    file.touch(mode=FILE_MODE)
    if file.stat().st_mode & OTHERS:
        file.chmod(FILE_MODE)
