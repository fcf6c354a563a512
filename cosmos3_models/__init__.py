"""Cosmos3 text-to-video with sound in plain PyTorch."""

from cosmos3_models.errors import CheckpointError, InvalidInput
from cosmos3_models.params import GenerationParams
from cosmos3_models.pipeline import Cosmos3Pipeline, GenerationResult

__all__ = ["CheckpointError", "Cosmos3Pipeline", "GenerationParams", "GenerationResult", "InvalidInput"]
