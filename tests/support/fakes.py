"""Stages that keep time and make small, seeded videos: for tests of load and faults, not of the model."""

import asyncio
import os
import sys
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray
from ray import cloudpickle, serve

from cosmos3_models import GenerationParams
from cosmos3_models.media.mp4 import VideoWriter
from cosmos3_models.text.prompt import PromptIds
from serve.app import AppArgs
from serve.graph.graph import Stages
from serve.graph.messages import LATENTS_COMPLETE, LATENTS_FOLLOW, DecodedVideo, DenoiserItem
from serve.ingress.ingress import Ingress
from serve.jobs.runner import JobRunner


class FakeTokenizer:
    async def encode(self, _: GenerationParams) -> PromptIds:
        return PromptIds(np.zeros(1, dtype=np.int64), None)

    async def encode_all(self, batch: list[GenerationParams]) -> list[PromptIds]:
        return [await self.encode(params) for params in batch]


class SteadyDenoiser:
    """Every step takes as long as the other."""

    def __init__(self, step_s: float) -> None:
        self._step_s = step_s
        self._turn = asyncio.Lock()

    async def denoise(self, _: PromptIds, params: GenerationParams) -> AsyncGenerator[DenoiserItem, None]:
        async with self._turn:
            for step in range(params.num_inference_steps):
                yield step
                await asyncio.sleep(self._step_s)
            yield params.num_inference_steps
        yield LATENTS_FOLLOW
        yield np.full(1, params.seed, dtype=np.float32)
        yield LATENTS_COMPLETE


class DeadlyDenoiser(SteadyDenoiser):
    """Takes its process down at the second step."""

    async def denoise(self, ids: PromptIds, params: GenerationParams) -> AsyncGenerator[DenoiserItem, None]:
        async for item in super().denoise(ids, params):
            if item == 2:
                os._exit(1)
            yield item


class FakeVideoDecoder:
    async def decode(self, latents: NDArray[np.float32], params: GenerationParams, _: bool) -> DecodedVideo:
        with VideoWriter(params.num_frames, params.height, params.width, params.fps) as writer:
            frames = np.random.default_rng(int(latents[0])).integers(0, 255, (1, params.height, params.width, 3))
            writer.write(np.repeat(frames.astype(np.uint8), params.num_frames, axis=0))
            return DecodedVideo.of(writer.finish())


def fake_application(
    args: AppArgs,
    step_s: float,
    *,
    denoiser: type = SteadyDenoiser,
    runners: int = 1,
    ingresses: int = 1,
) -> Any:
    """The real ingress and runner over fake stages."""
    actor: dict[str, Any] = {"ray_actor_options": {"num_cpus": 0}}
    tokenizer = serve.deployment(FakeTokenizer, **actor).bind()
    stages = Stages(
        tokenizer,
        serve.deployment(denoiser, max_ongoing_requests=2, **actor).bind(step_s),
        serve.deployment(FakeVideoDecoder, **actor).bind(),
        tokenizer,  # no sound is made
    )
    waiting = {**actor, "graceful_shutdown_timeout_s": 60}
    runner = serve.deployment(JobRunner, name="JobRunner", max_ongoing_requests=64, num_replicas=runners, **waiting)
    ingress = serve.deployment(
        serve.ingress()(Ingress), name="Ingress", max_ongoing_requests=256, num_replicas=ingresses, **waiting
    )
    settings, media = args.job_settings(), args.media()
    runner = runner.bind(stages, settings, media, args.model_names()[0])
    return ingress.bind(stages, runner, args.model_settings("cpu"), settings, media)


@contextmanager
def picklable() -> Iterator[None]:
    """Replicas can't import the tests, so the classes travel whole. One use may lie within another."""
    module = sys.modules[__name__]
    if module.__name__ in cloudpickle.list_registry_pickle_by_value():
        yield
        return
    cloudpickle.register_pickle_by_value(module)
    yield
    cloudpickle.unregister_pickle_by_value(module)
