"""The file that a command line writes: checked before minutes of work, not after."""

import os
from pathlib import Path

from cosmos3_models.errors import InvalidInput


def check_output_file(path: Path) -> None:
    """Raise ``InvalidInput`` unless the file can be written. Nothing is created: a new folder may be a typing error."""
    for wrong, expected, why in (
        (path.is_dir(), "the name of a file", "this is a folder"),
        (not path.parent.is_dir(), "a file in a folder that exists", f"there is no folder {path.parent}"),
        (not os.access(path.parent, os.W_OK), "a file that you may write", f"you may not write to {path.parent}"),
        (path.exists() and not os.access(path, os.W_OK), "a file that you may write", "this one is write-protected"),
    ):
        if wrong:
            raise InvalidInput("--out", str(path), expected, why)
