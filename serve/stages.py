"""The four model stages: load in the constructor, then one verb.

Latents leave a stage as contiguous fp32 arrays and arrive read-only; no stage writes into what it was given. PyTorch
comes with what the constructors import, so the processes that only build or drive the graph start without it.
"""

import asyncio
import logging
import threading
import time
from collections.abc import AsyncGenerator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

from cosmos3_models import GenerationParams
from cosmos3_models.checkpoint import CardUse, Checkpoint, Offload
from cosmos3_models.errors import Stopped
from cosmos3_models.media import VideoWriter, encode_chunks, encode_sound
from cosmos3_models.params import ApproximationPolicy
from cosmos3_models.prompt import PromptEncoder, PromptIds
from serve.messages import LATENTS_COMPLETE, LATENTS_FOLLOW, DecodedSound, DecodedVideo, DenoiserItem
from serve.worker import Worker

logger = logging.getLogger("ray.serve")


class Tokenizer:
    def __init__(self, checkpoint: str) -> None:
        self._encoder = PromptEncoder.from_checkpoint(Checkpoint.open(checkpoint).folder)

    async def encode(self, params: GenerationParams) -> PromptIds:
        return self._encoder.encode(params)


class Denoiser:
    def __init__(
        self, checkpoint: str, device: str, policy: ApproximationPolicy, offload_text: Offload, use: CardUse
    ) -> None:
        with _told("PyTorch imported"):
            from cosmos3_models import attention, weights
            from cosmos3_models.denoise import VideoDenoiser
            from cosmos3_models.memory import Footprint

        opened = Checkpoint.open(checkpoint)
        target, dtype = weights.resolve_device(device)
        with _told(f"Weights of {opened.name} loaded"), ThreadPoolExecutor(max_workers=1) as aside:
            aside.submit(attention.backend, target)  # on a GPU seconds of imports, while the files are read
            transformer = weights.load_transformer(opened, target, dtype, offload_text, use)
        approximation = policy.over(opened.defaults).approximation
        self._footprint = Footprint(opened, dtype, use)
        self._denoiser = VideoDenoiser(transformer, opened.scheduler, opened.sound)
        kind = f"{dtype}, {approximation.label}, attention: {attention.backend(target)}"
        kind += ", text tower in host memory" if transformer.text.offloaded else ""
        with _told(f"Transformer of {opened.name} warmed up on {target} ({kind})"):
            self._denoiser.warm_up(approximation)
        self._worker = Worker()

    async def denoise(self, ids: PromptIds, params: GenerationParams) -> AsyncGenerator[DenoiserItem, None]:
        """Yield the steps done (0 when the turn has come), then each stream's clean latents between two words.

        Every item is an object of its own, so whoever drives the graph hands the latents on without reading them.
        """
        loop, steps = asyncio.get_running_loop(), asyncio.Queue[int | None]()

        def tell(done: int, _steps: int) -> None:
            loop.call_soon_threadsafe(steps.put_nowait, done)

        def job(stop: threading.Event) -> list[NDArray[np.float32]]:
            transformer = self._denoiser.transformer
            self._footprint.check(params, transformer.device, offloaded=transformer.text.offloaded)
            tell(0, params.num_inference_steps)
            return self._denoiser.arrays(ids, params, on_step=tell, should_stop=stop.is_set)

        work = asyncio.create_task(self._worker.run(job))
        work.add_done_callback(lambda _: steps.put_nowait(None))
        try:
            while (done := await steps.get()) is not None:
                yield done
            latents = work.result()
        finally:
            work.cancel()
            await asyncio.wait([work])
        yield LATENTS_FOLLOW
        for stream in latents:
            yield stream
        yield LATENTS_COMPLETE


class VideoDecoder:
    def __init__(self, checkpoint: str, device: str) -> None:
        from cosmos3_models import weights

        with _told("Video decoder loaded and warmed up"):
            self._decoder = weights.load_video_decoder(Checkpoint.open(checkpoint), *weights.resolve_device(device))
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
            for frames in self._decoder.frames(latents):
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
        from cosmos3_models import weights

        opened = Checkpoint.open(checkpoint)
        self._decoder = None
        if opened.sound is not None:
            with _told("Sound decoder loaded and warmed up"):
                self._decoder = weights.load_sound_decoder(opened, *weights.resolve_device(device))
                self._decoder.warm_up()
        self._worker = Worker()

    async def decode(self, latents: NDArray[np.float32], arrays: bool = False) -> DecodedSound:
        """Latents (1, d, t) to an AAC track, and to a waveform as well if ``arrays``."""
        return await self._worker.run(lambda _: self._decode(latents, arrays))

    def _decode(self, latents: NDArray[np.float32], arrays: bool) -> DecodedSound:
        if self._decoder is None:
            raise RuntimeError("sound latents reached a checkpoint without a sound decoder")
        waveform = self._decoder.waveform(latents)
        track = encode_sound(waveform, self._decoder.config.sample_rate)
        return DecodedSound(track, waveform if arrays else None)


@contextmanager
def _told(what: str) -> Iterator[None]:
    """A line in the log once it is done, with its seconds."""
    start = time.perf_counter()
    yield
    logger.info(f"{what} in {time.perf_counter() - start:.1f} s.")
