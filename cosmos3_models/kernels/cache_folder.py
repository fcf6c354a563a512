"""Where files that can be made again are kept."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """This user's folder, in ``XDG_CACHE_HOME`` or ``~/.cache``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cosmos3-serve"
