"""The model stages, but for those of ``media_stages``. Each loads in its constructor and has one verb.

Latents leave a stage as contiguous fp32 arrays and arrive read-only; no stage writes to its inputs. The constructors
import PyTorch, so that the processes that only build or drive the graph start without it.
"""

import asyncio
from collections.abc import AsyncGenerator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cosmos3_models import GenerationParams, InvalidInput
from cosmos3_models.checkpoint.folder import CardUse, Checkpoint, Offload
from cosmos3_models.params import ApproximationPolicy
from cosmos3_models.references import ReferenceKind, clean_frames
from cosmos3_models.resources.budget import Budget
from cosmos3_models.resources.cost import request_flops
from cosmos3_models.text.prompt import PromptEncoder, PromptIds
from serve.graph.denoiser_ranks import Ranks
from serve.graph.messages import LATENTS_COMPLETE, LATENTS_FOLLOW, PREVIEW_FOLLOWS, DenoiserItem
from serve.graph.worker import Patience, Turn, Worker, logged, seconds_at_most

if TYPE_CHECKING:
    from cosmos3_models.sampling.clean_frames import CleanFrames
    from cosmos3_models.sampling.denoise import VideoDenoiser


class Tokenizer:
    """Turns prompts into token ids.

    Args:
        checkpoint: a folder, a model on the Hugging Face Hub, or ``demo``.
    """

    def __init__(self, checkpoint: str) -> None:
        self._encoder = PromptEncoder.from_checkpoint(Checkpoint.open(checkpoint, transformer=False).folder)

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
        checkpoint: a folder, a model on the Hugging Face Hub, or ``demo``.
        device: cpu or cuda.
        policy: the approximation of requests that do not choose one.
        offload_text: whether the text tower stays in host memory.
        use: what else the GPU is for, and how many processes, each with a GPU, make each video together.
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
            from cosmos3_models.parallel.world import check_world
            from cosmos3_models.resources.footprint import Footprint
            from cosmos3_models.transformer import attention

        self._checkpoint = opened = Checkpoint.open(checkpoint)
        self._device = device
        check_world(use.ranks, opened.transformer)
        load = partial(_load_denoiser, checkpoint, device, offload_text, use)
        several = Ranks(load, use.ranks) if use.ranks > 1 else None
        self._denoiser: VideoDenoiser | Ranks = several or load()
        transformer = self._denoiser.transformer
        target, dtype = weights.resolve_device(device)
        approximation = policy.over(opened.defaults).approximation
        footprint = Footprint(opened, dtype, use)
        self._budget = footprint.budget(target, offloaded=transformer.text.offloaded)
        kind = f"{dtype}, {approximation.label}, attention: {attention.backend(target)}"
        kind += ", text tower in host memory" if transformer.text.offloaded else ""
        kind += f", {use.ranks} ranks" if several else ""
        with logged(f"Transformer of {opened.name} warmed up on {target} ({kind})"):
            lost = several.lost if several else lambda: None
            self._worker = Worker(lambda: self._denoiser.warm_up(approximation), patience, lost)

    async def denoise(
        self,
        ids: PromptIds,
        params: GenerationParams,
        clean_latents: NDArray[np.float32] | None = None,
        kind: ReferenceKind | None = None,
    ) -> AsyncGenerator[DenoiserItem, None]:
        """Yield the steps done, 0 first, then ``LATENTS_FOLLOW``, each stream's latents, and ``LATENTS_COMPLETE``.

        The latents are fp32: video (1, c, t, h, w), and sound (1, d, t) if ``params.generate_sound``. Every item is an
        object of its own in Ray's store, so the graph passes the latents on without loading them. After the steps that
        a preview shows come ``PREVIEW_FOLLOWS`` and its latents.

        Args:
            clean_latents: fp32 (1, c, k, h, w) of a picture or clip, from the first latent frame on.
            kind: which of the two; it and the request say which of those latent frames stay as they are.

        Raises:
            InvalidInput: the request needs more memory than the GPU has.
        """
        clean = None
        if clean_latents is not None and kind is not None:
            clean = _clean(clean_latents, clean_frames(params, kind))
        loop, items = asyncio.get_running_loop(), asyncio.Queue[DenoiserItem | None]()

        def report(item: DenoiserItem) -> None:
            loop.call_soon_threadsafe(items.put_nowait, item)

        def job(turn: Turn) -> list[NDArray[np.float32]]:
            def on_step(done: int, _steps: int) -> None:
                turn.step()
                report(done)

            def show(_step: int, snippets: NDArray[np.float32]) -> None:
                report(PREVIEW_FOLLOWS)
                report(snippets)

            if self._budget is not None:
                self._budget.check(params)
            report(0)
            return self._denoiser.arrays(ids, params, clean=clean, on_step=on_step, should_stop=turn.stopped, show=show)

        work = asyncio.create_task(self._worker.run(job, self._first_step_s(ids, params)))
        work.add_done_callback(lambda _: items.put_nowait(None))
        try:
            while (item := await items.get()) is not None:
                yield item
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


def _load_denoiser(checkpoint: str, device: str, offload_text: Offload, use: CardUse) -> "VideoDenoiser":
    from cosmos3_models.checkpoint import loading as weights
    from cosmos3_models.sampling.denoise import VideoDenoiser
    from cosmos3_models.transformer import attention

    opened = Checkpoint.open(checkpoint)
    target, dtype = weights.resolve_device(device)
    with logged(f"Weights of {opened.name} loaded"), ThreadPoolExecutor(max_workers=1) as aside:
        aside.submit(attention.backend, target)  # on a GPU seconds of imports, while the files are read
        transformer = weights.load_transformer(opened, target, dtype, offload_text, use)
    return VideoDenoiser(transformer, opened.scheduler, opened.sound)


def _clean(latents: NDArray[np.float32], indexes: tuple[int, ...]) -> "CleanFrames":
    from cosmos3_models.sampling.clean_frames import CleanFrames  # here, because it imports PyTorch

    return CleanFrames.of(latents, indexes)
