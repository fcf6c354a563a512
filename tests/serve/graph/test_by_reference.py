"""Latents never pass through the process that drives the graph, however large they are."""

import asyncio
import sys
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from numpy.typing import NDArray
from ray import cloudpickle, serve
from ray.serve.handle import DeploymentHandle

from cosmos3_models import GenerationParams
from cosmos3_models.media.mp4 import VideoWriter, encode_sound
from cosmos3_models.text.prompt import PromptIds
from serve.app import AppArgs
from serve.graph.graph import Graph, Reference, Stages
from serve.graph.messages import LATENTS_COMPLETE, LATENTS_FOLLOW, DecodedSound, DecodedVideo, DenoiserItem
from serve.graph.stages import Tokenizer
from serve.ingress.ingress import Ingress

MEGABYTE = 1 << 20
LATENTS_MB = 100
PARAMS = GenerationParams(prompt="x", num_frames=5, height=16, width=16, generate_sound=True)


class InflatedVideoEncoder:
    """Gives latents of 100 MB."""

    async def encode(self, file: bytes, _: GenerationParams, kind: str) -> AsyncGenerator[Any, None]:
        assert (file, kind) == (b"a picture", "image")
        yield np.full(LATENTS_MB * MEGABYTE // 4, 3, dtype=np.float32)
        yield LATENTS_COMPLETE


class InflatedDenoiser:
    """Gives latents of 100 MB a stream."""

    async def denoise(
        self, ids: PromptIds, _: GenerationParams, clean: NDArray[np.float32] | None = None, kind: str | None = None
    ) -> AsyncGenerator[DenoiserItem, None]:
        assert len(ids.positive)
        if clean is not None:
            check(clean, 3)
            assert kind == "image"
        yield 0
        yield LATENTS_FOLLOW
        for value in (1, 2):
            yield np.full(LATENTS_MB * MEGABYTE // 4, value, dtype=np.float32)
        yield LATENTS_COMPLETE


class CheckingVideoDecoder:
    async def decode(self, latents: NDArray[np.float32], _: GenerationParams, __: bool) -> DecodedVideo:
        check(latents, 1)
        with VideoWriter(5, 16, 16, 24) as writer:
            writer.write(np.zeros((5, 16, 16, 3), dtype=np.uint8))
            return DecodedVideo.of(writer.finish())


class CheckingSoundDecoder:
    async def decode(self, latents: NDArray[np.float32], _: bool) -> DecodedSound:
        check(latents, 2)
        return DecodedSound(encode_sound(np.zeros((2, 4800), dtype=np.float32), 48_000), None)


def check(latents: NDArray[np.float32], value: int) -> None:
    assert latents.nbytes == LATENTS_MB * MEGABYTE
    assert not latents.flags.writeable
    assert latents[0] == latents[-1] == value


@pytest.fixture(scope="module")
def handle(
    server: object, tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[DeploymentHandle[Any]]:
    """The real ingress and graph over stages with large latents, beside the real application."""
    assert server is not None
    cloudpickle.register_pickle_by_value(sys.modules[__name__])  # replicas cannot import the tests
    options: dict[str, Any] = {"ray_actor_options": {"num_cpus": 0}, "graceful_shutdown_wait_loop_s": 0.1}
    data_dir = str(tmp_path_factory.mktemp("inflated"))
    stages = Stages(
        serve.deployment(Tokenizer, **options).bind(str(tiny_checkpoint)),
        serve.deployment(InflatedVideoEncoder, **options).bind(),
        serve.deployment(InflatedDenoiser, **options).bind(),
        serve.deployment(CheckingVideoDecoder, **options).bind(),
        serve.deployment(CheckingSoundDecoder, **options).bind(),
    )
    ingress = serve.deployment(serve.ingress()(Ingress), name="Ingress", **options)
    args = AppArgs(checkpoint=str(tiny_checkpoint), data_dir=data_dir, max_attempts=1)
    no_runner = stages.tokenizer  # these requests are no jobs
    application = ingress.bind(stages, no_runner, args.model_settings("cpu"), args.job_settings(), args.media())
    yield serve.run(application, name="inflated", route_prefix="/inflated")
    serve.delete("inflated")
    cloudpickle.unregister_pickle_by_value(sys.modules[__name__])


def test_the_ingress_does_not_grow_with_the_latents(handle: DeploymentHandle[Any]) -> None:
    """Resident memory, which counts the pages of the object store that a process has touched."""
    request = PARAMS.model_dump(exclude={"negative_prompt"})
    handle.generate.remote(request).result()  # what is loaded once is loaded now
    ingress = next(
        process
        for process in psutil.process_iter(["cmdline"])
        if "ray::ServeReplica:inflated:Ingress" in " ".join(process.info["cmdline"] or ())
    )
    before = most = ingress.memory_info().rss
    responses = [handle.generate.remote(request) for _ in range(3)]
    while not all(_done(response) for response in responses):
        most = max(most, ingress.memory_info().rss)
        time.sleep(0.01)
    assert (most - before) / MEGABYTE < 5


def test_the_caller_does_not_grow_with_the_latents_of_a_picture(handle: DeploymentHandle[Any]) -> None:
    """As above, for the process that drives the graph: here it is this one."""
    assert handle
    names = (InflatedVideoEncoder, InflatedDenoiser, CheckingVideoDecoder, CheckingSoundDecoder)
    handles = [serve.get_deployment_handle(stage.__name__, "inflated") for stage in (Tokenizer, *names)]
    process, sizes = psutil.Process(), []

    async def read() -> bytes:
        return b"a picture"

    async def scene() -> None:
        graph = Graph(Stages(*handles), max_attempts=1)
        for _ in range(3):
            async with aclosing(graph.run(PARAMS, "m", reference=Reference("image", read))) as events:
                async for _ in events:
                    sizes.append(process.memory_info().rss)

    asyncio.run(scene())
    assert (max(sizes) - sizes[len(sizes) // 3]) / MEGABYTE < 5, "what is loaded once was loaded for the first request"


def _done(response: Any) -> bool:
    try:
        response.result(timeout_s=0)
    except TimeoutError:
        return False
    return True
