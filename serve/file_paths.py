"""Paths in a deployment file."""

import os
from typing import Annotated

from pydantic import AfterValidator, Field

BECAUSE = "because every process has a working folder of its own"


def _absolute(path: str) -> str:
    """Expand ``~``, and refuse a relative path, which every process would resolve against a folder of its own."""
    expanded = os.path.expanduser(path)
    if "://" not in path and not os.path.isabs(expanded):
        raise ValueError(f"expected an absolute path or one from ~, {BECAUSE}")
    return expanded


Name = Annotated[str, Field(min_length=1)]
AbsolutePath = Annotated[Name, AfterValidator(_absolute)]
