"""The stages of the graph driven in one process without Ray: what the graph is compared with."""

import asyncio
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Self

from cosmos3_models.approximations import Approximation
from cosmos3_models.checkpoint.folder import Checkpoint
from cosmos3_models.checkpoint.loading import one_process, resolve_device
from cosmos3_models.media.mp4 import mux
from cosmos3_models.params import ApproximationPolicy, GenerationParams
from serve.app import AppArgs
from serve.graph.media_stages import SoundDecoder, VideoDecoder
from serve.graph.stages import Denoiser, Tokenizer
from serve.schema import VideoRequest

PROMPT = "A red ball bounces on a wooden floor while a camera moves slowly around it."
WARM_UP_STEPS = 2


@dataclass(frozen=True)
class Case:
    """A request of a certain size, made several times."""

    height: int
    width: int
    num_frames: int
    steps: int
    times: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """``HEIGHTxWIDTHxFRAMES:STEPS:TIMES``; without the last it is made once."""
        size, steps, *times = text.split(":")
        height, width, num_frames = map(int, size.split("x"))
        return cls(height, width, num_frames, int(steps), *map(int, times or ["1"]))

    def __str__(self) -> str:
        return f"{self.height}x{self.width}x{self.num_frames}:{self.steps}"

    def fields(self, sound: bool, approximation: Approximation, steps: int | None = None) -> dict[str, Any]:
        """The body of the request, with other steps if they are given. Guidance is on: the negative prompt runs too."""
        return {
            "prompt": PROMPT,
            "size": f"{self.width}x{self.height}",
            "num_frames": self.num_frames,
            "num_inference_steps": steps or self.steps,
            "seed": 1,
            "generate_sound": sound,
            **approximation.model_dump(),
        }


Made = tuple[float, dict[str, float], int]
"""Seconds from the request to the mp4 on disk, seconds by stage, bytes of the mp4."""


class OneProcess:
    """The stages without their deployments."""

    def __init__(self, checkpoint: str, device: str, approximation: Approximation) -> None:
        target = resolve_device(device)[0].type
        opened = Checkpoint.open(checkpoint)
        self._defaults = opened.defaults
        self._tokenizer = Tokenizer(checkpoint)
        policy, patience = ApproximationPolicy(**approximation.model_dump()), AppArgs().patience()
        self._denoiser = Denoiser(checkpoint, target, policy, "auto", one_process(opened), patience)
        self._video_decoder = VideoDecoder(checkpoint, target, patience)
        self._sound_decoder = SoundDecoder(checkpoint, target, patience)

    async def make(self, fields: dict[str, Any], path: Path) -> Made:
        """One video, in the order of ``serve.graph.graph``."""
        marks = {"begin": time.perf_counter()}
        params = VideoRequest(**fields).params(self._defaults)
        ids = self._tokenizer.encode(params)
        marks["tokenizer"] = time.perf_counter()
        items = [item async for item in self._denoiser.denoise(ids, params)]
        latents = [item for item in items if not isinstance(item, int | str)]
        marks["denoiser"] = time.perf_counter()
        mp4 = await self._decode(latents, params, marks)
        path.write_bytes(mp4)
        wall_s = time.perf_counter() - marks["begin"]
        laps = {name: end - start for (_, start), (name, end) in pairwise(marks.items())}
        return wall_s, laps, len(mp4)

    async def _decode(self, latents: list[Any], params: GenerationParams, marks: dict[str, float]) -> bytes:
        calls: list[Any] = [
            self._video_decoder.decode(latents[0], params),
            *map(self._sound_decoder.decode, latents[1:]),
        ]
        video, *sound = await asyncio.gather(*calls)
        marks["decoders"] = time.perf_counter()
        mp4 = await asyncio.to_thread(mux, video.track, sound[0].track if sound else None)
        marks["mux"] = time.perf_counter()
        return mp4


def summary(made: list[Made]) -> dict[str, Any]:
    """The median run: its seconds, those of its stages and of all else, and its file's size in MB."""
    ordered = sorted(made, key=lambda run: run[0])
    wall_s, stages, size = ordered[(len(made) - 1) // 2]
    row: dict[str, Any] = {"wall_s": wall_s, "least_s": ordered[0][0], "most_s": ordered[-1][0]}
    row |= {f"{name}_s": seconds for name, seconds in stages.items()}
    return row | {"other_s": wall_s - sum(stages.values()), "mp4_mb": size / 1e6}


def rows(
    checkpoint: str, device: str, approximation: Approximation, sound: bool, cases: list[Case], folder: Path
) -> Iterator[dict[str, Any]]:
    """A row about loading, then one for each case, from a process of its own, whose memory is free afterwards."""
    context = get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    arguments = (sender, checkpoint, device, approximation, sound, cases, folder)
    process = context.Process(target=_send_rows, args=arguments, daemon=True)
    process.start()
    sender.close()
    try:
        yield from iter(_receiving(receiver), None)
        process.join()
        if process.exitcode:
            raise RuntimeError(f"the process ended with status {process.exitcode}")
    finally:
        process.kill()
        process.join()


def _receiving(receiver: "Connection[Any, Any]") -> Callable[[], dict[str, Any] | None]:
    def receive() -> dict[str, Any] | None:
        try:
            row: dict[str, Any] = receiver.recv()
        except EOFError:
            return None
        return row

    return receive


def _send_rows(
    sender: "Connection[Any, Any]",
    checkpoint: str,
    device: str,
    approximation: Approximation,
    sound: bool,
    cases: list[Case],
    folder: Path,
) -> None:
    start = time.perf_counter()
    stages = OneProcess(checkpoint, device, approximation)
    sender.send({"case": "load", "wall_s": time.perf_counter() - start})
    path = folder / "one.mp4"

    async def measure() -> None:
        for case in cases:
            await stages.make(case.fields(sound, approximation, WARM_UP_STEPS), path)
            made = [await stages.make(case.fields(sound, approximation), path) for _ in range(case.times)]
            sender.send({"case": str(case), **summary(made)})

    asyncio.run(measure())
