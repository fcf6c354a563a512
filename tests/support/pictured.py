"""A request that begins with a picture, driven from the test's own process over the stages of an application."""

import asyncio
from typing import Any

import numpy as np
from ray import serve

from cosmos3_models import GenerationParams
from cosmos3_models.media.pictures import encode_picture
from serve.graph.artifacts import FinishedRequest
from serve.graph.graph import Graph, Reference, Stages

STAGES = ("Tokenizer", "VideoEncoder", "Denoiser", "VideoDecoder", "SoundDecoder")
PICTURE = np.random.default_rng(0).integers(0, 256, (80, 60, 3), dtype=np.uint8)
PICTURED = GenerationParams(prompt="x", num_frames=9, height=64, width=96, num_inference_steps=3)


def begun_with_a_picture(application: str) -> FinishedRequest:
    """The result of ``PICTURED``, which begins with ``PICTURE``."""
    handles: list[Any] = [serve.get_deployment_handle(stage, application) for stage in STAGES]

    async def read() -> bytes:
        return encode_picture(PICTURE, "png")

    async def scene() -> FinishedRequest:
        graph = Graph(Stages(*handles), max_attempts=3)
        events = [event async for event in graph.run(PICTURED, "m", arrays=True, reference=Reference("image", read))]
        assert isinstance(events[-1], FinishedRequest)
        return events[-1]

    return asyncio.run(scene())
