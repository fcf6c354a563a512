"""Stages that keep time and make small, seeded videos, and handles and graphs that follow a script.

The stages run under Ray, for tests of load and faults; handles and graphs need no Ray.
"""

import asyncio
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Generator, Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from ray import cloudpickle, serve

from cosmos3_models import GenerationParams
from cosmos3_models.media.mp4 import VideoWriter
from cosmos3_models.text.prompt import PromptIds
from serve.app import AppArgs, prompt_upsampler
from serve.graph.artifacts import ArtifactName
from serve.graph.graph import Stages
from serve.graph.messages import LATENTS_COMPLETE, LATENTS_FOLLOW, DecodedVideo, DenoiserItem
from serve.ingress.ingress import Ingress
from serve.jobs.runner import JobRunner

OF_A_VIDEO: tuple[ArtifactName, ...] = ("video", "thumbnail", "spritesheet")
OF_AN_IMAGE: tuple[ArtifactName, ...] = ("image", "thumbnail")


class FakeEnds:
    """Tokenizer and video decoder in one process, which halves what an application costs to start."""

    async def encode(self, _: GenerationParams) -> PromptIds:
        return PromptIds(np.zeros(1, dtype=np.int64), np.zeros(1, dtype=np.int64))  # costed as two prompts elsewhere

    async def encode_all(self, batch: list[GenerationParams]) -> list[PromptIds]:
        return [await self.encode(params) for params in batch]

    async def decode(self, latents: NDArray[np.float32], params: GenerationParams, _: bool) -> DecodedVideo:
        with VideoWriter(params.num_frames, params.height, params.width, params.fps) as writer:
            frames = np.random.default_rng(int(latents[0])).integers(0, 255, (1, params.height, params.width, 3))
            writer.write(np.repeat(frames.astype(np.uint8), params.num_frames, axis=0))
            return DecodedVideo.of(writer.finish())


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


def fake_application(args: AppArgs, step_s: float, *, runners: int = 1, ingresses: int = 1) -> Any:
    """The real ingress and runner over fake stages."""
    actor: dict[str, Any] = {"ray_actor_options": {"num_cpus": 0}}
    ends = serve.deployment(FakeEnds, **actor).bind()
    denoiser = serve.deployment(SteadyDenoiser, max_ongoing_requests=2, **actor).bind(step_s)
    stages = Stages(ends, ends, denoiser, ends, ends, prompt_upsampler(args))  # no picture comes, no sound is made
    waiting = {**actor, "graceful_shutdown_timeout_s": 60}
    runner = serve.deployment(JobRunner, name="JobRunner", max_ongoing_requests=64, num_replicas=runners, **waiting)
    ingress = serve.deployment(
        serve.ingress()(Ingress), name="Ingress", max_ongoing_requests=256, num_replicas=ingresses, **waiting
    )
    settings, media = args.job_settings(), args.media()
    runner = runner.bind(stages, settings, media, args.model_names()[0])
    return ingress.bind(stages, runner, args.model_settings("cpu"), settings, media)


class FakeReference:
    """A reference of an object in the store; loading it returns the object, or raises it if it is an exception.

    A coroutine function stands for what it returns, once it does.
    """

    def __init__(self, item: Any) -> None:
        self.item = item
        self.loaded = False

    def __await__(self) -> Generator[Any, None, Any]:
        self.loaded = True
        return _returned(self.item).__await__()


class FakeCall:
    """What a handle's method returns: the result of a stage, or a stream of references.

    Args:
        result: returned, raised if it is an exception, waited for if it is an event, or awaited before a replica takes
            up the call if it is a coroutine function.
    """

    def __init__(self, result: Any, args: Sequence[Any]) -> None:
        self.args = args
        self.cancelled = False
        self.references = [FakeReference(item) for item in result] if isinstance(result, list) else []
        self._result = result

    def __await__(self) -> Generator[Any, None, Any]:
        return _returned(self._result).__await__()

    async def _to_object_ref_gen(self) -> AsyncIterator[FakeReference]:
        if isinstance(self._result, Exception):
            raise self._result
        if asyncio.iscoroutinefunction(self._result):
            await self._result()
        return self._stream()

    async def _stream(self) -> AsyncIterator[FakeReference]:
        if isinstance(self._result, asyncio.Event):
            await self._result.wait()
        for reference in self.references:
            yield reference

    def cancel(self) -> None:
        self.cancelled = True


class FakeMethod:
    """A method of a handle.

    Args:
        results: of the calls in order; the last one repeats.
    """

    def __init__(self, *results: Any) -> None:
        self._results = list(results)
        self.calls: list[FakeCall] = []

    def remote(self, *args: Any) -> FakeCall:
        result = self._results.pop(0) if len(self._results) > 1 else self._results[0]
        self.calls.append(FakeCall(result, args))
        return self.calls[-1]


class FakeHandle(SimpleNamespace):
    """A handle, given its methods by name."""

    def options(self, **_: Any) -> "FakeHandle":
        return self


class FakeGraph:
    """A graph that yields the same events for every job.

    Args:
        script: events to yield, exceptions to raise, and coroutine functions to await in between.
    """

    def __init__(self, *script: Any) -> None:
        self._script = script

    async def run(self, *_: Any, **__: Any) -> AsyncGenerator[Any, None]:
        for item in self._script:
            if callable(item):
                await item()
            else:
                yield await _returned(item)


async def _returned(item: Any) -> Any:
    if isinstance(item, BaseException):
        raise item.with_traceback(None)  # one of an earlier raise is no part of this one
    if isinstance(item, asyncio.Event):
        await item.wait()
    return await item() if asyncio.iscoroutinefunction(item) else item


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
