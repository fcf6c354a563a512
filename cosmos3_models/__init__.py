"""Cosmos3 in plain PyTorch, which is imported when the pipeline is asked for: text, pictures and clips to video."""

from typing import TYPE_CHECKING, Any

from cosmos3_models.errors import CheckpointError, InvalidInput
from cosmos3_models.params import GenerationParams

if TYPE_CHECKING:
    from cosmos3_models.pipeline import Cosmos3Pipeline, GenerationResult

__all__ = ["CheckpointError", "Cosmos3Pipeline", "GenerationParams", "GenerationResult", "InvalidInput"]


def __getattr__(name: str) -> Any:
    if name not in ("Cosmos3Pipeline", "GenerationResult"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from cosmos3_models import pipeline

    return getattr(pipeline, name)
