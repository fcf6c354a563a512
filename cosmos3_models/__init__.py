"""Cosmos3 in plain PyTorch: text, pictures and clips to video.

PyTorch and pydantic are imported when a name that needs them is asked for: the process that reads a picture from
outside needs neither and starts for each one.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from cosmos3_models.errors import CheckpointError, InvalidInput

if TYPE_CHECKING:
    from cosmos3_models.params import GenerationParams
    from cosmos3_models.pipeline import Cosmos3Pipeline, GenerationResult

__all__ = ["CheckpointError", "Cosmos3Pipeline", "GenerationParams", "GenerationResult", "InvalidInput"]


_WHERE = {"GenerationParams": "params", "Cosmos3Pipeline": "pipeline", "GenerationResult": "pipeline"}


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_WHERE[name]}"), name)
