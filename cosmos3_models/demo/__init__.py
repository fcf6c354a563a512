"""A checkpoint small enough for a laptop: the real layout, seeded random weights, so its videos are noise.

It is written on first use, into the user's cache folder, and stays the same on every machine.
"""

import shutil
import tempfile
from pathlib import Path

from cosmos3_models.cache import cache_folder

REVISION = "1"  # of the files; a change of them is a new folder
NAME = "cosmos3-demo"


def folder() -> Path:
    """The demo's checkpoint folder, written first if it is not there yet."""
    target = cache_folder() / f"revision-{REVISION}" / NAME
    if not target.is_dir():
        target.parent.mkdir(parents=True, exist_ok=True)
        from cosmos3_models.demo.random_weights import write  # brings PyTorch

        draft = Path(tempfile.mkdtemp(dir=target.parent))
        write(draft)
        try:
            draft.rename(target)
        except OSError:  # another process was first, with the same files
            shutil.rmtree(draft)
    return target
