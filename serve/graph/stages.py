"""The four model stages. Each loads in its constructor and has one verb.

Latents leave a stage as contiguous fp32 arrays and arrive read-only; no stage writes to its inputs. The constructors
import PyTorch, so that the processes that only build or drive the graph start without it.
"""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

from cosmos3_models import GenerationParams, InvalidInput
from cosmos3_models.checkpoint.configs import require_sound
from cosmos3_models.checkpoint.folder import CardUse, Checkpoint, Offload
from cosmos3_models.media.mp4 import VideoWriter, encode_chunks, encode_sound
from cosmos3_models.params import ApproximationPolicy
from cosmos3_models.resources.budget import Budget
from cosmos3_models.resources.cost import request_flops, sound_decode_flops, video_decode_flops
from cosmos3_models.shapes import LatentGrid
from cosmos3_models.text.prompt import PromptEncoder, PromptIds
from serve.graph.messages import LATENTS_COMPLETE, LATENTS_FOLLOW, DecodedSound, DecodedVideo, DenoiserItem
from serve.graph.worker import Patience, Turn, Worker

logger = logging.getLogger("ray.serve")

SLOWEST_FLOPS = {"cuda": 2e13, "cpu": 5e8}
"""Operations per second that every usable device reaches: a first step that is slower than this is hung."""

SMALLEST = GenerationParams(prompt="x", num_frames=5, height=16, width=16)
"""The request with which a decoder proves that it works."""


class Tokenizer:
    """Turns prompts into token ids.

    Args:
        checkpoint: a folder, or ``demo``.
    """

    def __init__(self, checkpoint: str) -> None:
        self._encoder = PromptEncoder.from_checkpoint(Checkpoint.open(checkpoint).folder)

    def encode(self, params: GenerationParams) -> PromptIds:
        """Return the ids of the prompt and, if guidance is on, of the negative prompt: int64 (tokens,) each.

        Raises:
            InvalidInput: a prompt has too many tokens.
        """
        return self._encoder.encode(params)

    def encode_all(self, batch: list[GenerationParams]) -> list[PromptIds | InvalidInput]:
        """Return the ids of each request, or what is wrong with it."""
        return [self._encoded(params) for params in batch]

    def _encoded(self, params: GenerationParams) -> PromptIds | InvalidInput:
        try:
            return self.encode(params)
        except InvalidInput as error:
            return error


class Denoiser:
    """Turns token ids and noise into clean latents, one request at a time.

    Args:
        checkpoint: a folder, or ``demo``.
        device: cpu or cuda.
        policy: the approximation of requests that do not choose one.
        offload_text: whether the text tower stays in host memory.
        use: what else the GPU is for.
        patience: how long a caller or a step may be silent.
    """

    def __init__(
        self,
        checkpoint: str,
        device: str,
        policy: ApproximationPolicy,
        offload_text: Offload,
        use: CardUse,
        patience: Patience,
    ) -> None:
        with _logged("PyTorch imported"):
            from cosmos3_models.checkpoint import loading as weights
            from cosmos3_models.resources.footprint import Footprint
            from cosmos3_models.sampling.denoise import VideoDenoiser
            from cosmos3_models.transformer import attention

        self._checkpoint = opened = Checkpoint.open(checkpoint)
        self._device = device
        target, dtype = weights.resolve_device(device)
        with _logged(f"Weights of {opened.name} loaded"), ThreadPoolExecutor(max_workers=1) as aside:
            aside.submit(attention.backend, target)  # on a GPU seconds of imports, while the files are read
            transformer = weights.load_transformer(opened, target, dtype, offload_text, use)
        approximation = policy.over(opened.defaults).approximation
        footprint = Footprint(opened, dtype, use)
        self._budget = footprint.budget(target, offloaded=transformer.text.offloaded)
        self._denoiser = VideoDenoiser(transformer, opened.scheduler, opened.sound)
        kind = f"{dtype}, {approximation.label}, attention: {attention.backend(target)}"
        kind += ", text tower in host memory" if transformer.text.offloaded else ""
        with _logged(f"Transformer of {opened.name} warmed up on {target} ({kind})"):
            self._worker = Worker(lambda: self._denoiser.warm_up(approximation), patience)

    async def denoise(self, ids: PromptIds, params: GenerationParams) -> AsyncGenerator[DenoiserItem, None]:
        """Yield the steps done, 0 first, then ``LATENTS_FOLLOW``, each stream's latents, and ``LATENTS_COMPLETE``.

        The latents are fp32: video (1, c, t, h, w), and sound (1, d, t) if ``params.generate_sound``. Every item is an
        object of its own in Ray's store, so the graph passes the latents on without loading them.

        Raises:
            InvalidInput: the request needs more memory than the GPU has.
        """
        loop, steps = asyncio.get_running_loop(), asyncio.Queue[int | None]()

        def report(done: int) -> None:
            loop.call_soon_threadsafe(steps.put_nowait, done)

        def job(turn: Turn) -> list[NDArray[np.float32]]:
            def on_step(done: int, _steps: int) -> None:
                turn.step()
                report(done)

            if self._budget is not None:
                self._budget.check(params)
            report(0)
            return self._denoiser.arrays(ids, params, on_step=on_step, should_stop=turn.stopped)

        work = asyncio.create_task(self._worker.run(job, self._first_step_s(ids, params)))
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

    def budget(self) -> Budget | None:
        """Return how much of this replica's GPU a request may use; None on the CPU."""
        return self._budget

    async def check_health(self) -> None:
        """Raise ``Broken`` if the replica must be replaced; Serve calls this periodically."""
        self._worker.check()

    def _first_step_s(self, ids: PromptIds, params: GenerationParams) -> float:
        tokens = [len(text) for text in (ids.positive, ids.negative) if text is not None]
        flops = request_flops(self._checkpoint, params, tokens)
        return _longest_s(flops.text + flops.step, self._device)


class VideoDecoder:
    """Turns video latents into H.264, chunk by chunk, or those of one frame into an image.

    Args:
        checkpoint: a folder, or ``demo``.
        device: cpu or cuda.
        patience: how long a caller or a step may be silent.
    """

    def __init__(self, checkpoint: str, device: str, patience: Patience) -> None:
        from cosmos3_models.checkpoint import loading as weights

        self._device = device
        with _logged("Video decoder loaded and warmed up"):
            self._decoder = weights.load_video_decoder(Checkpoint.open(checkpoint), *weights.resolve_device(device))
            self._worker = Worker(self._warm_up, patience)

    async def decode(
        self, latents: NDArray[np.float32], params: GenerationParams, arrays: bool = False
    ) -> DecodedVideo:
        """Decode and encode a video, or an image if the request is for one frame.

        Args:
            latents: fp32 (1, c, t, h, w).
            params: their request, for size, length and frame rate.
            arrays: return the frames as well.
        """
        longest_s = self._longest_s(latents)
        return await self._worker.run(lambda turn: self._decode(latents, params, arrays, turn), longest_s)

    async def check_health(self) -> None:
        """Raise ``Broken`` if the replica must be replaced; Serve calls this periodically."""
        self._worker.check()

    def _warm_up(self) -> None:
        self._decoder.warm_up()
        latents = np.zeros((1, self._decoder.config.z_dim, 2, 1, 1), dtype=np.float32)
        self._decode(latents, SMALLEST, False, Turn(0))

    def _longest_s(self, latents: NDArray[np.float32]) -> float:
        """Return the seconds of the whole video on the slowest device; its chunks differ too much to be compared."""
        return _longest_s(video_decode_flops(self._decoder.config, LatentGrid(*latents.shape[2:])), self._device)

    def _decode(self, latents: NDArray[np.float32], params: GenerationParams, arrays: bool, turn: Turn) -> DecodedVideo:
        collected, longest_s = [], self._longest_s(latents)

        def chunks() -> Iterator[NDArray[np.uint8]]:
            for frames in self._decoder.frames(latents):
                turn.raise_if_stopped()
                turn.step(longest_s)
                if arrays:
                    collected.append(frames)
                yield frames

        if params.num_frames == 1:
            (frames,) = chunks()
            return DecodedVideo.of_image(frames[0], frames if arrays else None)
        with VideoWriter(params.num_frames, params.height, params.width, params.fps) as writer:
            track = encode_chunks(writer, chunks())
        return DecodedVideo.of(track, np.concatenate(collected) if arrays else None)


class SoundDecoder:
    """Turns sound latents into AAC. It loads nothing if the checkpoint has no sound.

    Args:
        checkpoint: a folder, or ``demo``.
        device: cpu or cuda.
        patience: how long a caller or a step may be silent.
    """

    def __init__(self, checkpoint: str, device: str, patience: Patience) -> None:
        from cosmos3_models.checkpoint import loading as weights

        opened = Checkpoint.open(checkpoint)
        self._config, self._device = opened.sound, device
        self._worker = None
        if opened.sound is not None:
            with _logged("Sound decoder loaded and warmed up"):
                self._decoder = weights.load_sound_decoder(opened, *weights.resolve_device(device))
                self._worker = Worker(self._warm_up, patience)

    async def decode(self, latents: NDArray[np.float32], arrays: bool = False) -> DecodedSound:
        """Decode and encode a sound track.

        Args:
            latents: fp32 (1, d, t).
            arrays: return the waveform as well.

        Raises:
            RuntimeError: the checkpoint has no sound decoder.
        """
        if self._worker is None:
            raise RuntimeError("sound latents reached a checkpoint without a sound decoder")
        longest_s = _longest_s(sound_decode_flops(require_sound(self._config), latents.shape[2]), self._device)
        return await self._worker.run(lambda _: self._decode(latents, arrays), longest_s)

    async def check_health(self) -> None:
        """Raise ``Broken`` if the replica must be replaced; Serve calls this periodically."""
        if self._worker is not None:
            self._worker.check()

    def _warm_up(self) -> None:
        self._decoder.warm_up()
        self._decode(np.zeros((1, self._decoder.config.latent_dim, 1), dtype=np.float32), False)

    def _decode(self, latents: NDArray[np.float32], arrays: bool) -> DecodedSound:
        waveform = self._decoder.waveform(latents)
        track = encode_sound(waveform, self._decoder.config.sample_rate)
        return DecodedSound(track, waveform if arrays else None)


def _longest_s(flops: int, device: str) -> float:
    """Return the most seconds that this many operations can take."""
    return flops / SLOWEST_FLOPS[device]


@contextmanager
def _logged(what: str) -> Iterator[None]:
    """Log what was done and its seconds."""
    start = time.perf_counter()
    yield
    logger.info(f"{what} in {time.perf_counter() - start:.1f} s.")
