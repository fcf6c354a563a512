"""The four model stages: load in the constructor, then one verb.

Tensors leave a stage as contiguous fp32 numpy arrays and arrive read-only; no stage writes into what it was given.
"""

import asyncio
import logging
import threading
import time
from collections.abc import AsyncGenerator, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from cosmos3_models import GenerationParams, attention
from cosmos3_models.checkpoint import Checkpoint
from cosmos3_models.denoise import VideoDenoiser, to_numpy
from cosmos3_models.errors import Stopped
from cosmos3_models.media import VideoTrack, VideoWriter, encode_chunks, encode_sound
from cosmos3_models.offload import Offload
from cosmos3_models.params import Approximation
from cosmos3_models.pipeline import resolve_device
from cosmos3_models.prompt import PromptEncoder, PromptIds
from cosmos3_models.transformer import Streams
from serve.worker import Worker

logger = logging.getLogger("ray.serve")

LATENTS_FOLLOW = "latents follow"
"""The denoiser's word before the latents; everything before it is a step count."""

LATENTS_COMPLETE = "latents complete"
"""Its word after them. Nobody reads the latents on the way, so only this tells that they are all there."""

DenoiserItem = int | str | NDArray[np.float32]


@dataclass(frozen=True)
class DecodedVideo:
    track: VideoTrack
    frames: NDArray[np.uint8] | None  # only for who asked


@dataclass(frozen=True)
class DecodedSound:
    track: bytes  # AAC in an mp4
    waveform: NDArray[np.float32] | None  # only for who asked


class Tokenizer:
    def __init__(self, checkpoint: str) -> None:
        self._encoder = PromptEncoder.from_checkpoint(Checkpoint.open(checkpoint).folder)

    async def encode(self, params: GenerationParams) -> PromptIds:
        return self._encoder.encode(params)


class Denoiser:
    def __init__(self, checkpoint: str, device: str, approximation: Approximation, offload_text: Offload) -> None:
        start = time.perf_counter()
        target, dtype = resolve_device(device)
        opened = Checkpoint.open(checkpoint)
        transformer = opened.load_transformer(target, dtype, offload_text)
        self._denoiser = VideoDenoiser(transformer, opened.scheduler, opened.sound)
        self._denoiser.warm_up(approximation)
        self._worker = Worker()
        seconds, backend = time.perf_counter() - start, attention.backend(target)
        kind = f"{dtype}, {approximation.label}, attention: {backend}"
        kind += ", text tower in host memory" if transformer.text.offloaded else ""
        logger.info(f"Transformer of {opened.name} on {target} ready in {seconds:.1f} s: {kind}.")

    async def denoise(self, ids: PromptIds, params: GenerationParams) -> AsyncGenerator[DenoiserItem, None]:
        """Yield the steps done (0 when the turn has come), then each stream's clean latents between two words.

        Every item is an object of its own, so whoever drives the graph hands the latents on without reading them.
        """
        loop, steps = asyncio.get_running_loop(), asyncio.Queue[int | None]()

        def tell(done: int, _steps: int) -> None:
            loop.call_soon_threadsafe(steps.put_nowait, done)

        def job(stop: threading.Event) -> Streams:
            tell(0, params.num_inference_steps)
            return self._denoiser(ids, params, on_step=tell, should_stop=stop.is_set)

        work = asyncio.create_task(self._worker.run(job))
        work.add_done_callback(lambda _: steps.put_nowait(None))
        try:
            while (done := await steps.get()) is not None:
                yield done
            latents = [to_numpy(stream) for stream in work.result().present]
        finally:
            work.cancel()
            await asyncio.wait([work])
        yield LATENTS_FOLLOW
        for stream in latents:
            yield stream
        yield LATENTS_COMPLETE


class VideoDecoder:
    def __init__(self, checkpoint: str, device: str) -> None:
        self._decoder = Checkpoint.open(checkpoint).load_video_decoder(*resolve_device(device))
        self._decoder.warm_up()
        self._worker = Worker()

    async def decode(
        self, latents: NDArray[np.float32], params: GenerationParams, arrays: bool = False
    ) -> DecodedVideo:
        """Latents (1, c, t, h, w) to an H.264 track, and to frames as well if ``arrays``."""
        return await self._worker.run(lambda stop: self._decode(latents, params, arrays, stop))

    def _decode(
        self, latents: NDArray[np.float32], params: GenerationParams, arrays: bool, stop: threading.Event
    ) -> DecodedVideo:
        kept = []

        def chunks() -> Iterator[NDArray[np.uint8]]:
            for frames in self._decoder.frames(torch.tensor(latents)):
                if stop.is_set():
                    raise Stopped
                if arrays:
                    kept.append(frames)
                yield frames

        with VideoWriter(params.num_frames, params.height, params.width, params.fps) as writer:
            track = encode_chunks(writer, chunks())
        return DecodedVideo(track, np.concatenate(kept) if arrays else None)


class SoundDecoder:
    def __init__(self, checkpoint: str, device: str) -> None:
        opened = Checkpoint.open(checkpoint)
        self._decoder = opened.load_sound_decoder(*resolve_device(device)) if opened.sound else None
        if self._decoder is not None:
            self._decoder.warm_up()
        self._worker = Worker()

    async def decode(self, latents: NDArray[np.float32], arrays: bool = False) -> DecodedSound:
        """Latents (1, d, t) to an AAC track, and to a waveform as well if ``arrays``."""
        return await self._worker.run(lambda _: self._decode(latents, arrays))

    def _decode(self, latents: NDArray[np.float32], arrays: bool) -> DecodedSound:
        if self._decoder is None:
            raise RuntimeError("sound latents reached a checkpoint without a sound decoder")
        waveform = to_numpy(self._decoder(torch.tensor(latents)))
        track = encode_sound(waveform, self._decoder.config.sample_rate)
        return DecodedSound(track, waveform if arrays else None)
