"""The graph of stages, written once: handle calls and HTTP both run it.

    params ── Tokenizer ──── ids ───────────┬─ Denoiser ─┬─ video latents ─ VideoDecoder ─ H.264 ─┬─ mp4
    picture ─ VideoEncoder ─ clean latents ─┘            └─ sound latents ─ SoundDecoder ─ AAC ───┘

Where the server has a PromptUpsampler, ``revision.py`` replaces the prompt of a request that asks for it before that.
Only a request with a picture or clip needs the encoder. Latents travel by reference from stage to stage; this process
never loads them. Of one frame the video decoder makes an image, which needs no mp4. The few latents of a preview go to
the video decoder while the denoiser goes on.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from typing import Any, NamedTuple

from ray import ObjectRef
from ray.exceptions import ObjectLostError, RayTaskError
from ray.serve.exceptions import (
    BackPressureError,
    DeploymentUnavailableError,
)
from ray.serve.handle import DeploymentHandle

from cosmos3_models import GenerationParams, InvalidInput
from cosmos3_models.media.mp4 import mux
from cosmos3_models.references import ReferenceKind, reference_frames
from cosmos3_models.resources.budget import Budget
from cosmos3_models.text.prompt import PromptIds
from serve.errors import ContentRefused, InvalidRequest, NotReady, QueueFull, StageFailed
from serve.graph.artifacts import Artifact, FinishedRequest
from serve.graph.batching import Batches, together
from serve.graph.clock import Clock
from serve.graph.messages import LATENTS_FOLLOW, PREVIEW_FOLLOWS, DecodedSound, DecodedVideo
from serve.graph.previews import Picture, Pictures
from serve.graph.revision import REPLICA_DIED, Upsampler
from serve.graph.stage_names import (
    DECODERS,
    DENOISER,
    LOST,
    MUX,
    QUEUE,
    SOUND_DECODER,
    TOKENIZER,
    VIDEO_DECODER,
    VIDEO_ENCODER,
)
from serve.graph.streaming_call import StreamingCall
from serve.schema import Preview, Progress, video_record

logger = logging.getLogger("ray.serve")

MUXERS = ThreadPoolExecutor(2, "mux")
"""Threads of their own: all of asyncio's may be waiting for a store or a controller that does not answer."""

FREE_WITHIN_S = 1.0
"""A decoder that is free takes up a preview well within this time, even on a busy machine."""

GraphEvent = Progress | Preview | FinishedRequest
"""What ``Graph.run`` yields: progress, previews, and the result last."""


class Stages(NamedTuple):
    """The handles of the model stages, and the stage before them if the server has one."""

    tokenizer: DeploymentHandle[Any]
    video_encoder: DeploymentHandle[Any]
    denoiser: DeploymentHandle[Any]
    video_decoder: DeploymentHandle[Any]
    sound_decoder: DeploymentHandle[Any]
    prompt_upsampler: Upsampler | None = None


class Reference(NamedTuple):
    """The picture or clip that a video begins with.

    Attributes:
        read: returns the file; called for each attempt, so that no request keeps the bytes.
        continued_frames: those of a clip that the result begins with, all of them; 0 if it has new frames alone.
    """

    kind: ReferenceKind
    read: Callable[[], Awaitable[bytes]]
    continued_frames: int = 0

    def silence_s(self, params: GenerationParams) -> float:
        """The seconds of the result before the first frame that the request makes."""
        if not self.continued_frames:
            return 0.0
        return (self.continued_frames - reference_frames(params, self.kind)) / params.fps


class Inputs(NamedTuple):
    """What the denoiser works from: the prompts' ids and, if the video begins with a picture or clip, its latents."""

    ids: PromptIds
    clean: tuple[()] | tuple[ObjectRef, ReferenceKind] = ()


class Latents(NamedTuple):
    """References of the denoised latents, which the decoders load: fp32 (1, c, t, h, w) and (1, d, t)."""

    video: ObjectRef
    sound: ObjectRef | None = None


class Snippets(NamedTuple):
    """The reference of a preview's latents, which the video decoder loads."""

    latents: ObjectRef


DenoiseItem = int | Snippets | Latents


class Graph:
    """Drives requests through the stages.

    Stages are pure functions of their inputs, so a call that was lost with its replica, or that failed through no fault
    of its request, is retried with the same result.

    Every method raises ``ServingError``, whose message the client gets:

    * ``InvalidRequest``: a stage refused the request.
    * ``ContentRefused``: the guard refused the frames.
    * ``QueueFull``: a stage has as many waiting requests as it takes.
    * ``NotReady``: a stage has no replica.
    * ``StageFailed``: a stage failed or was lost ``max_attempts`` times.

    Args:
        stages: handles of the model stages.
        max_attempts: how often a stage is called for one request, at least 1.
    """

    def __init__(self, stages: Stages, max_attempts: int) -> None:
        self._stages = stages
        self._encoder = stages.video_encoder.options(stream=True)
        self._denoiser = stages.denoiser.options(stream=True)
        self._previewer = stages.video_decoder.options(stream=True)
        self._max_attempts = max_attempts
        self._checks: Batches[GenerationParams, PromptIds] = Batches(self._check_all)

    async def run(
        self, params: GenerationParams, model: str, arrays: bool = False, reference: Reference | None = None
    ) -> AsyncGenerator[GraphEvent, None]:
        """Make one video: yield progress events, then the result. Closing the generator stops the stages.

        The events are step 0 when the denoiser takes up the request, every step after it, previews if the request asks
        for any, and the start of the decoders. A denoise that is retried starts again at step 0.

        Args:
            model: the served model's name, for the record.
            arrays: return frames and waveform as well.
            reference: the picture or clip to begin with. Errors of its ``read`` are raised as they are.
        """
        for attempt in range(1, self._max_attempts + 1):
            try:
                async with aclosing(self._once(params, model, arrays, reference)) as events:
                    async for event in events:
                        yield event
                return
            except ObjectLostError as error:  # the node with the latents has died
                self._log_or_raise("node with the latents", attempt, error)

    async def budget(self) -> Budget | None:
        """Return how much of the denoiser's GPU a request may use, None on the CPU; waits for a free replica."""
        budget: Budget | None = await self._call(DENOISER, self._stages.denoiser.budget.remote)
        return budget

    async def check(self, params: GenerationParams) -> PromptIds:
        """Return the prompts' ids. Only the tokenizer can tell that there are too many of them (``InvalidRequest``)."""
        return await self._checks(params)

    async def _check_all(self, batch: list[GenerationParams]) -> list[PromptIds | Exception]:
        """Check all requests that arrived during the previous call in one call."""
        encoded = await self._call(TOKENIZER, self._stages.tokenizer.encode_all.remote, batch)
        return [InvalidRequest.of(ids) if isinstance(ids, InvalidInput) else ids for ids in encoded]

    async def _once(
        self, params: GenerationParams, model: str, arrays: bool, reference: Reference | None
    ) -> AsyncGenerator[GraphEvent, None]:
        clock = Clock()
        inputs = await self._encode(params, reference, clock)
        pictures, step, steps = Pictures(self._preview), 0, params.num_inference_steps
        async with aclosing(self._denoise(inputs, params)) as made, aclosing(pictures.among(made)) as items:
            async for item in items:
                match item:
                    case Latents():
                        latents = item
                    case Snippets():
                        pictures.start(step, item.latents)
                    case int():
                        if item == 0:
                            clock.lap(LOST if QUEUE in clock.laps else QUEUE)
                        yield clock.progress(DENOISER, step := item, steps)
                    case Picture():
                        yield clock.preview(item, steps)
        clock.lap(DENOISER)
        yield clock.progress(DECODERS, 0, 1)
        video, sound = await self._decode(latents, params, arrays, reference)
        clock.lap(DECODERS)
        artifacts = video.pictures
        if video.track is not None:
            tracks = video.track, sound.track if sound else None
            mp4 = await asyncio.get_running_loop().run_in_executor(MUXERS, mux, *tracks)
            artifacts = Artifact.of("video", mp4), *artifacts
            clock.lap(MUX)
        record = video_record(params, model, clock.laps)
        yield FinishedRequest(artifacts, record, video.frames, sound.waveform if sound else None)

    async def _encode(self, params: GenerationParams, reference: Reference | None, clock: Clock) -> Inputs:
        """Run the tokenizer and, for a picture or clip, the video encoder at the same time."""

        async def ids() -> PromptIds:
            encoded: PromptIds = await self._call(TOKENIZER, self._stages.tokenizer.encode.remote, params)
            clock.lap(TOKENIZER)
            return encoded

        if reference is None:
            return Inputs(await ids())
        encoded, clean = await together(ids(), self._encode_reference(params, reference))
        clock.lap(VIDEO_ENCODER)
        return Inputs(encoded, (clean, reference.kind))

    async def _encode_reference(self, params: GenerationParams, reference: Reference) -> ObjectRef:
        """Return a reference of the clean latents. Retried when the replica dies or fails."""
        for attempt in range(1, self._max_attempts + 1):
            call = StreamingCall(self._encoder.encode.remote, await reference.read(), params, reference.kind)
            try:
                *latents, complete = [item async for item in call.references()]
                await complete  # raises what the encoder raised
                return latents[0]
            except Exception as error:
                call.cancel()  # a replica that cannot be reached may still work on it
                self._retry_or_raise(VIDEO_ENCODER, attempt, error)
            except BaseException:  # cancelled
                call.cancel()
                raise

    async def _denoise(self, inputs: Inputs, params: GenerationParams) -> AsyncGenerator[DenoiseItem, None]:
        """Yield the steps done and what previews show, then the latents.

        Starts again at step 0 when the replica dies or fails.
        """
        for attempt in range(1, self._max_attempts + 1):
            call = StreamingCall(self._denoiser.denoise.remote, inputs.ids, params, *inputs.clean)
            try:
                references = call.references()
                while (item := await (await anext(references))) != LATENTS_FOLLOW:
                    yield Snippets(await anext(references)) if item == PREVIEW_FOLLOWS else item
                *latents, complete = [reference async for reference in references]
                await complete  # raises if the replica died before it had stored all latents
                yield Latents(*latents)
                return
            except Exception as error:
                call.cancel()  # a replica that cannot be reached may still work on it
                self._retry_or_raise(DENOISER, attempt, error)
            except BaseException:  # cancelled or closed
                call.cancel()
                raise

    async def _decode(
        self, latents: Latents, params: GenerationParams, arrays: bool, reference: Reference | None
    ) -> tuple[DecodedVideo, DecodedSound | None]:
        """Run both decoders at the same time."""
        before: tuple[Any, ...] = ()
        silence: tuple[float, ...] = ()
        if reference is not None and reference.continued_frames:
            before = (await reference.read(), reference.continued_frames)
            silence = (reference.silence_s(params),)
        decode = self._stages.video_decoder.decode.remote
        calls = [self._call(VIDEO_DECODER, decode, latents.video, params, arrays, *before)]
        if latents.sound is not None:
            decode = self._stages.sound_decoder.decode.remote
            calls.append(self._call(SOUND_DECODER, decode, latents.sound, arrays, *silence))
        video, *sound = await together(*calls)
        return video, sound[0] if sound else None

    async def _preview(self, latents: ObjectRef) -> bytes | None:
        """Return the JPEG of a preview; None if no decoder is free, for a preview must not wait before a video."""
        call = StreamingCall(self._previewer.preview.remote, latents)
        try:
            if not await call.started(FREE_WITHIN_S):
                return None
            jpeg: bytes = await (await anext(call.references()))
            return jpeg
        finally:
            call.cancel()

    async def _call(self, stage: str, method: Callable[..., Any], *args: Any) -> Any:
        """Return the result of a unary stage, retried while its replicas die or fail."""
        for attempt in range(1, self._max_attempts + 1):
            response = method(*args)
            try:
                return await response
            except Exception as error:
                self._retry_or_raise(stage, attempt, error)
                response.cancel()  # a replica that cannot be reached may still work on it
            except BaseException:  # cancelled
                response.cancel()
                raise

    def _retry_or_raise(self, stage: str, attempt: int, error: Exception) -> None:
        """Return if the stage itself caused the error and attempts remain."""
        if (reason := _reason_not_to_retry(stage, error)) is not None:
            raise reason from error
        self._log_or_raise(stage, attempt, error)

    def _log_or_raise(self, stage: str, attempt: int, error: Exception) -> None:
        """Log a failed attempt; raise ``StageFailed`` for the last one."""
        lost = isinstance(error, (*REPLICA_DIED, ObjectLostError))
        logger.warning(
            f"Attempt {attempt} of {self._max_attempts} in the {stage} {'was lost' if lost else 'failed'}: "
            f"{type(error).__name__}.",
            exc_info=None if lost else error,
        )
        if attempt == self._max_attempts:
            what = f"was lost {attempt} times while it worked" if lost else f"failed {attempt} times"
            raise StageFailed(f"the {stage} {what} on this request") from error


def _reason_not_to_retry(stage: str, error: Exception) -> Exception | None:
    """Return what to raise at once.

    The request is invalid, its frames are refused, the stage takes no requests, or its input is lost.
    """
    cause = error.cause if isinstance(error, RayTaskError) else error
    if isinstance(cause, InvalidInput):
        return InvalidRequest.of(cause)
    if isinstance(cause, ContentRefused):
        return cause
    if isinstance(error, BackPressureError):
        return QueueFull(f"the {stage} has as many requests waiting as it takes; try again later", retry_after_s=1)
    if isinstance(error, DeploymentUnavailableError):
        return NotReady(f"the {stage} is not running")
    if isinstance(error, ObjectLostError):
        return error
    return None
