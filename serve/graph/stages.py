"""The model stages, but for those of ``media_stages``. Each loads in its constructor and has one verb.

Latents leave a stage as contiguous fp32 arrays and arrive read-only; no stage writes to its inputs. The constructors
import PyTorch, so that the processes that only build or drive the graph start without it.
"""

import asyncio
from collections.abc import AsyncGenerator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cosmos3_models import GenerationParams, InvalidInput
from cosmos3_models.checkpoint.folder import CardUse, Checkpoint, Offload
from cosmos3_models.params import ApproximationPolicy, ReferenceKind, clean_frames
from cosmos3_models.resources.budget import Budget
from cosmos3_models.resources.cost import request_flops
from cosmos3_models.text.prompt import PromptEncoder, PromptIds
from serve.graph.messages import LATENTS_COMPLETE, LATENTS_FOLLOW, DenoiserItem
from serve.graph.worker import Patience, Turn, Worker, logged, seconds_at_most

if TYPE_CHECKING:
    from cosmos3_models.sampling.clean_frames import CleanFrames


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
        with logged("PyTorch imported"):
            from cosmos3_models.checkpoint import loading as weights
            from cosmos3_models.resources.footprint import Footprint
            from cosmos3_models.sampling.denoise import VideoDenoiser
            from cosmos3_models.transformer import attention

        self._checkpoint = opened = Checkpoint.open(checkpoint)
        self._device = device
        target, dtype = weights.resolve_device(device)
        with logged(f"Weights of {opened.name} loaded"), ThreadPoolExecutor(max_workers=1) as aside:
            aside.submit(attention.backend, target)  # on a GPU seconds of imports, while the files are read
            transformer = weights.load_transformer(opened, target, dtype, offload_text, use)
        approximation = policy.over(opened.defaults).approximation
        footprint = Footprint(opened, dtype, use)
        self._budget = footprint.budget(target, offloaded=transformer.text.offloaded)
        self._denoiser = VideoDenoiser(transformer, opened.scheduler, opened.sound)
        kind = f"{dtype}, {approximation.label}, attention: {attention.backend(target)}"
        kind += ", text tower in host memory" if transformer.text.offloaded else ""
        with logged(f"Transformer of {opened.name} warmed up on {target} ({kind})"):
            self._worker = Worker(lambda: self._denoiser.warm_up(approximation), patience)

    async def denoise(
        self,
        ids: PromptIds,
        params: GenerationParams,
        clean_latents: NDArray[np.float32] | None = None,
        kind: ReferenceKind | None = None,
    ) -> AsyncGenerator[DenoiserItem, None]:
        """Yield the steps done, 0 first, then ``LATENTS_FOLLOW``, each stream's latents, and ``LATENTS_COMPLETE``.

        The latents are fp32: video (1, c, t, h, w), and sound (1, d, t) if ``params.generate_sound``. Every item is an
        object of its own in Ray's store, so the graph passes the latents on without loading them.

        Args:
            clean_latents: fp32 (1, c, k, h, w) of a picture or clip, from the first latent frame on.
            kind: which of the two; it and the request say which of those latent frames stay as they are.

        Raises:
            InvalidInput: the request needs more memory than the GPU has.
        """
        clean = None
        if clean_latents is not None and kind is not None:
            clean = _clean(clean_latents, clean_frames(params, kind))
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
            return self._denoiser.arrays(ids, params, clean=clean, on_step=on_step, should_stop=turn.stopped)

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
        return seconds_at_most(flops.text + flops.step, self._device)


def _clean(latents: NDArray[np.float32], indexes: tuple[int, ...]) -> "CleanFrames":
    from cosmos3_models.sampling.clean_frames import CleanFrames  # here, because it imports PyTorch

    return CleanFrames.of(latents, indexes)
