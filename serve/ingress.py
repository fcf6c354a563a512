"""The door of the graph: HTTP routes and handle calls for other Ray jobs."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from fastapi import FastAPI
from ray import serve
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import ReplicaState

from cosmos3_models import GenerationParams, InvalidInput
from cosmos3_models.checkpoint import Checkpoint
from cosmos3_models.denoise import require_sound
from cosmos3_models.params import check_pixel_frames
from serve.api import create_api
from serve.errors import InvalidRequest
from serve.graph import Graph
from serve.schema import Event, FinishedVideo, ModelCard, VideoRequest, read_request

APP_NAME = "cosmos3"


class Ingress:
    """Stateless; checks requests and drives the graph.

    Args:
        tokenizer, denoiser, video_decoder, sound_decoder: handles of the stages.
        checkpoint: the folder that the stages serve; only its configs are read here.
        max_pixel_frames: the largest height x width x frames that is accepted.
        max_attempts: runs of a stage whose replicas die.
    """

    def __init__(
        self,
        tokenizer: DeploymentHandle[Any],
        denoiser: DeploymentHandle[Any],
        video_decoder: DeploymentHandle[Any],
        sound_decoder: DeploymentHandle[Any],
        checkpoint: str,
        max_pixel_frames: int,
        max_attempts: int,
    ) -> None:
        self._checkpoint = Checkpoint.open(checkpoint)
        self._max_pixel_frames = max_pixel_frames
        self._graph = Graph(tokenizer, denoiser, video_decoder, sound_decoder, self._checkpoint.name, max_attempts)

    def __serve_build_asgi_app__(self) -> FastAPI:
        return create_api(self)

    async def generate(self, request: VideoRequest | dict[str, Any], arrays: bool = False) -> FinishedVideo:
        """One finished video: mp4 bytes, JPEG thumbnail and record, and with ``arrays`` frames and waveform.

        Raises:
            ServingError: what the request got wrong, or what failed.
        """
        async with aclosing(self.stream(request, arrays)) as events:
            async for event in events:
                if event["type"] == "video":
                    return event
        raise RuntimeError("the graph ended without a video")

    async def stream(self, request: VideoRequest | dict[str, Any], arrays: bool = False) -> AsyncGenerator[Event, None]:
        """The same, with a progress event for every step on the way; the video is the last event."""
        params = self._params(request)
        async with aclosing(self._graph.run(params, arrays)) as events:
            async for event in events:
                yield event

    def model_card(self) -> ModelCard:
        """What is served: name, defaults, limits."""
        params = self._checkpoint.defaults.params(prompt="-")
        return {
            "id": self._checkpoint.name,
            "object": "model",
            "created": int(self._checkpoint.folder.stat().st_mtime),
            "owned_by": "cosmos3",
            "sound": self._checkpoint.sound is not None,
            "defaults": params.model_dump(exclude={"prompt"}),
            "max_pixel_frames": self._max_pixel_frames,
        }

    async def unready_stages(self) -> list[str]:
        """The deployments of the graph without a running replica."""
        application = (await asyncio.to_thread(serve.status)).applications.get(APP_NAME)
        if application is None:
            return [APP_NAME]
        stages = application.deployments.items()
        return [name for name, stage in stages if stage.replica_states.get(ReplicaState.RUNNING, 0) == 0]

    def _params(self, request: VideoRequest | dict[str, Any]) -> GenerationParams:
        try:
            checked = read_request(request)
            if checked.model not in (None, self._checkpoint.name):
                served = f"{self._checkpoint.name!r} or no model"
                raise InvalidInput("model", checked.model, served, "this is the model that is served here")
            params = checked.params(self._checkpoint.defaults)
            check_pixel_frames(params, self._max_pixel_frames)
            if params.generate_sound:
                require_sound(self._checkpoint.sound)
        except InvalidInput as error:
            raise InvalidRequest.of(error) from None
        return params
