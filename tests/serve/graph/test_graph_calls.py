"""The graph over handles that follow a script: what it calls, what it retries, and what it tells the client."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
from fakes import OF_A_VIDEO, OF_AN_IMAGE, FakeCall, FakeHandle, FakeMethod
from ray import cloudpickle
from ray.exceptions import ObjectLostError, RayActorError, RayTaskError
from ray.serve._private.common import DeploymentID
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError

from cosmos3_models import GenerationParams, InvalidInput
from cosmos3_models.media.mp4 import VideoWriter, encode_sound
from cosmos3_models.text.prompt import PromptIds
from serve.errors import (
    ContentRefused,
    InvalidRequest,
    MediaUnavailable,
    NotReady,
    QueueFull,
    ServingError,
    StageFailed,
)
from serve.graph import clock
from serve.graph.artifacts import MEDIA_TYPES, FinishedRequest
from serve.graph.graph import Graph, Reference, Stages
from serve.graph.messages import LATENTS_COMPLETE, LATENTS_FOLLOW, DecodedSound, DecodedVideo

PARAMS = GenerationParams(prompt="x", num_frames=5, height=16, width=16, num_inference_steps=2, generate_sound=True)
IDS = PromptIds(np.zeros(1, dtype=np.int64), None)
VIDEO_LATENTS, SOUND_LATENTS = np.zeros((1, 1, 1, 1, 1), np.float32), np.zeros((1, 1, 1), np.float32)
ENCODED = [np.zeros((1, 1, 1, 1, 1), np.float32), LATENTS_COMPLETE]
STEPS = [0, 1, 2, LATENTS_FOLLOW]
DENOISED = [*STEPS, VIDEO_LATENTS, SOUND_LATENTS, LATENTS_COMPLETE]
MAX_ATTEMPTS = 3

DIED = RayActorError()
LOST = ObjectLostError("ab" * 14, None, "")
BROKEN: Exception = RayTaskError("decode", "a trace", RuntimeError("CUDA error")).as_instanceof_cause()
REFUSED: Exception = cloudpickle.loads(
    cloudpickle.dumps(RayTaskError("decode", "a trace", ContentRefused("a weapon")).as_instanceof_cause())
)
INVALID: Exception = RayTaskError("denoise", "a trace", InvalidInput("height", 9, "16", "")).as_instanceof_cause()


def decoded_video() -> DecodedVideo:
    with VideoWriter(PARAMS.num_frames, PARAMS.height, PARAMS.width, PARAMS.fps) as writer:
        writer.write(np.zeros((PARAMS.num_frames, PARAMS.height, PARAMS.width, 3), np.uint8))
        return DecodedVideo.of(writer.finish())


VIDEO = decoded_video()
SOUND = DecodedSound(encode_sound(np.zeros((2, 4800), np.float32), 48_000))


class FakeStages(NamedTuple):
    """The methods that the graph calls."""

    encode: FakeMethod
    encode_reference: FakeMethod
    denoise: FakeMethod
    decode_video: FakeMethod
    decode_sound: FakeMethod
    preview: FakeMethod = FakeMethod([b"jpeg"])

    def graph(self) -> Graph:
        stages: Any = Stages(
            FakeHandle(encode=self.encode, encode_all=self.encode),
            FakeHandle(encode=self.encode_reference),
            FakeHandle(denoise=self.denoise, budget=self.denoise),
            FakeHandle(decode=self.decode_video, preview=self.preview),
            FakeHandle(decode=self.decode_sound),
        )
        return Graph(stages, MAX_ATTEMPTS)

    def counts(self) -> tuple[int, ...]:
        """How often each method was called, but for previews."""
        return tuple(len(method.calls) for method in self[:5])


def stages(**changes: FakeMethod) -> FakeStages:
    """Stages that work, but for ``changes``."""
    working = FakeStages(
        FakeMethod(IDS), FakeMethod(ENCODED), FakeMethod(DENOISED), FakeMethod(VIDEO), FakeMethod(SOUND)
    )
    return working._replace(**changes)


async def read_picture() -> bytes:
    return b"a picture"


PICTURE = Reference("image", read_picture)


def events_of(fakes: FakeStages, params: GenerationParams = PARAMS, reference: Reference | None = None) -> list[Any]:
    """All events of one request."""

    async def scene() -> list[Any]:
        try:
            return [event async for event in fakes.graph().run(params, "m", reference=reference)]
        finally:
            await asyncio.sleep(0.01)  # cancellations happen in the background

    return asyncio.run(scene())


def error_of(fakes: FakeStages, reference: Reference | None = None) -> ServingError:
    with pytest.raises(ServingError) as caught:
        events_of(fakes, reference=reference)
    return caught.value


def steps(events: list[Any]) -> list[int]:
    return [event["step"] for event in events[:-1] if event["stage"] == "denoiser"]


def test_a_request_passes_each_stage_once_and_its_latents_are_never_loaded() -> None:
    fakes = stages()
    *progress, finished = events_of(fakes)
    assert fakes.counts() == (1, 0, 1, 1, 1)
    assert [(event["stage"], event["step"]) for event in progress] == [
        ("denoiser", 0),
        ("denoiser", 1),
        ("denoiser", 2),
        ("decoders", 0),
    ]
    (denoise,) = fakes.denoise.calls
    assert denoise.args == (IDS, PARAMS)
    video, sound = denoise.references[4:6]
    assert fakes.decode_video.calls[0].args == (video, PARAMS, False)
    assert fakes.decode_sound.calls[0].args == (sound, False)
    assert not video.loaded
    assert not sound.loaded
    assert isinstance(finished, FinishedRequest)
    assert [artifact.name for artifact in finished.artifacts] == list(OF_A_VIDEO), "the main one first"
    assert all(artifact.media_type == MEDIA_TYPES[artifact.name] for artifact in finished.artifacts)
    assert [artifact.data for artifact in finished.artifacts[1:]] == [picture.data for picture in VIDEO.pictures]
    assert list(finished.record["stage_durations"]) == ["tokenizer", "queue", "denoiser", "decoders", "mux"]


def test_a_request_without_sound_needs_no_sound_decoder() -> None:
    fakes = stages(denoise=FakeMethod([*STEPS, VIDEO_LATENTS, LATENTS_COMPLETE]))
    finished = events_of(fakes, PARAMS.model_copy(update={"generate_sound": False}))[-1]
    assert fakes.counts() == (1, 0, 1, 1, 0)
    assert finished.waveform is None


def test_a_picture_is_encoded_beside_the_prompt_and_its_latents_are_never_loaded() -> None:
    fakes = stages()
    finished = events_of(fakes, reference=PICTURE)[-1]
    assert fakes.counts() == (1, 1, 1, 1, 1)
    (encode,), (denoise,) = fakes.encode_reference.calls, fakes.denoise.calls
    assert encode.args == (b"a picture", PARAMS, "image")
    assert denoise.args == (IDS, PARAMS, encode.references[0], "image")
    assert not encode.references[0].loaded
    durations = list(finished.record["stage_durations"])
    assert durations == ["tokenizer", "video_encoder", "queue", "denoiser", "decoders", "mux"]


def test_tokenizer_and_encoder_run_at_the_same_time_and_their_times_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(clock, "time", SimpleNamespace(perf_counter=lambda: now))
    started: list[str] = []

    class Slow(FakeMethod):
        """Answers once both stages have been called."""

        def remote(self, *args: Any) -> FakeCall:
            started.append("call")
            return super().remote(*args)

    both = asyncio.Event()
    fakes = stages(encode=Slow(both), encode_reference=Slow(ENCODED))

    async def scene() -> Any:
        nonlocal now
        events = fakes.graph().run(PARAMS, "m", reference=PICTURE)
        first = asyncio.ensure_future(anext(events))
        async with asyncio.timeout(10):
            while len(started) < 2:
                await asyncio.sleep(0)
        now += 5
        both.set()
        await first
        now += 3
        return [event async for event in events][-1].record["stage_durations"]

    durations = asyncio.run(scene())
    assert (durations["tokenizer"], durations["video_encoder"]) == (5, 0)
    assert sum(durations.values()) == 8


@pytest.mark.parametrize(
    "lost",
    [[DIED], [ENCODED[0], DIED], DIED, [BROKEN]],
    ids=["at work", "after its latents", "before it started", "it raises"],
)
def test_an_encode_whose_replica_dies_or_fails_is_retried_alone(lost: Any) -> None:
    fakes = stages(encode_reference=FakeMethod(lost, ENCODED))
    assert isinstance(events_of(fakes, reference=PICTURE)[-1], FinishedRequest)
    assert fakes.counts() == (1, 2, 1, 1, 1)
    assert [call.cancelled for call in fakes.encode_reference.calls] == [True, False], "the first one may still run"
    assert fakes.denoise.calls[0].args[2] is fakes.encode_reference.calls[1].references[0]


def test_an_encoder_that_fails_every_time_fails_the_request_and_cancels_the_tokenizer() -> None:
    fakes = stages(encode=FakeMethod(asyncio.Event()), encode_reference=FakeMethod([BROKEN]))
    error = error_of(fakes, PICTURE)
    assert (type(error), error.message) == (StageFailed, "the video_encoder failed 3 times on this request")
    assert fakes.counts() == (1, 3, 0, 0, 0)
    assert fakes.encode.calls[0].cancelled


def test_a_tokenizer_that_refuses_cancels_the_encoder() -> None:
    fakes = stages(encode=FakeMethod(INVALID), encode_reference=FakeMethod(asyncio.Event()))
    assert error_of(fakes, PICTURE).param == "height"
    assert fakes.counts() == (1, 1, 0, 0, 0)


def test_clean_latents_whose_node_dies_are_made_again_from_the_file_on() -> None:
    fakes = stages(denoise=FakeMethod([LOST], DENOISED))
    assert isinstance(events_of(fakes, reference=PICTURE)[-1], FinishedRequest)
    assert fakes.counts() == (2, 2, 2, 1, 1)


def test_a_file_that_cannot_be_read_from_the_store_is_not_an_error_of_a_stage() -> None:
    async def gone() -> bytes:
        raise MediaUnavailable("the store is away")

    fakes = stages()
    assert isinstance(error_of(fakes, Reference("video", gone)), MediaUnavailable)
    assert fakes.counts() == (1, 0, 0, 0, 0)


def test_one_frame_gives_an_image_and_no_video() -> None:
    image = DecodedVideo.of_image(np.zeros((16, 16, 3), np.uint8))
    fakes = stages(denoise=FakeMethod([*STEPS, VIDEO_LATENTS, LATENTS_COMPLETE]), decode_video=FakeMethod(image))
    finished = events_of(fakes, PARAMS.model_copy(update={"num_frames": 1, "generate_sound": False}))[-1]
    assert [artifact.name for artifact in finished.artifacts] == list(OF_AN_IMAGE)
    assert list(finished.record["stage_durations"]) == ["tokenizer", "queue", "denoiser", "decoders"]
    public = finished.for_handle_caller({"id": "x"})
    assert set(public) == {"type", "record", *OF_AN_IMAGE}
    assert public["image"] == image.pictures[0].data


@pytest.mark.parametrize(
    "lost",
    [[0, 1, DIED], [*STEPS, VIDEO_LATENTS, SOUND_LATENTS, DIED], DIED],
    ids=["in a step", "among the latents", "before its first step"],
)
def test_a_denoise_whose_replica_dies_starts_again_and_its_time_is_apart(lost: Any) -> None:
    fakes = stages(denoise=FakeMethod(lost, DENOISED))
    events = events_of(fakes)
    assert fakes.counts() == (1, 0, 2, 1, 1)
    assert steps(events)[-3:] == [0, 1, 2]
    assert ("lost" in events[-1].record["stage_durations"]) == isinstance(lost, list)
    assert [call.cancelled for call in fakes.denoise.calls] == [True, False], "the first one may still run"


def test_latents_whose_node_dies_are_made_again_from_the_prompt_on() -> None:
    fakes = stages(decode_video=FakeMethod(LOST, VIDEO))
    assert steps(events_of(fakes)) == [0, 1, 2, 0, 1, 2]
    assert fakes.counts() == (2, 0, 2, 2, 2)


def test_latents_that_are_lost_every_time_fail_the_request() -> None:
    fakes = stages(decode_sound=FakeMethod(LOST))
    error = error_of(fakes)
    assert isinstance(error, StageFailed)
    assert error.message == "the node with the latents was lost 3 times while it worked on this request"
    assert fakes.counts() == (3, 0, 3, 3, 3)


@pytest.mark.parametrize("error", [BROKEN, DIED], ids=["it raises", "its replica dies"])
def test_only_the_decoder_that_fails_is_retried(error: Exception, caplog: pytest.LogCaptureFixture) -> None:
    fakes = stages(decode_sound=FakeMethod(error, error, SOUND))
    assert isinstance(events_of(fakes)[-1], FinishedRequest)
    assert fakes.counts() == (1, 0, 1, 1, 3)
    assert [call.cancelled for call in fakes.decode_sound.calls] == [True, True, False], "each may still run"
    warnings = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert [record.message.split(" was")[0].split(" failed")[0] for record in warnings] == [
        "Attempt 1 of 3 in the sound_decoder",
        "Attempt 2 of 3 in the sound_decoder",
    ]
    assert [bool(record.exc_info) for record in warnings] == [error is BROKEN] * 2, "a death has no trace worth a line"


def test_a_decoder_that_fails_every_time_fails_the_request_and_cancels_the_other() -> None:
    fakes = stages(decode_video=FakeMethod(BROKEN), decode_sound=FakeMethod(asyncio.Event()))

    async def scene() -> bool:
        with pytest.raises(StageFailed, match="the video_decoder failed 3 times on this request"):
            async for _ in fakes.graph().run(PARAMS, "m"):
                pass
        await asyncio.sleep(0.01)
        return fakes.decode_sound.calls[0].cancelled

    assert asyncio.run(scene())
    assert fakes.counts() == (1, 0, 1, 3, 1)


def test_a_denoiser_that_fails_every_time_fails_the_request_without_a_detail_of_the_error() -> None:
    fakes = stages(denoise=FakeMethod([0, BROKEN]))
    error = error_of(fakes)
    assert (type(error), error.message) == (StageFailed, "the denoiser failed 3 times on this request")
    assert error.__cause__ is BROKEN
    assert fakes.counts() == (1, 0, 3, 0, 0)
    assert all(call.cancelled for call in fakes.denoise.calls)


@pytest.mark.parametrize("stage", ["encode", "encode_reference", "denoise", "decode_video"])
@pytest.mark.parametrize(
    ("raised", "kind", "message"),
    [
        (INVALID, InvalidRequest, "height: got 9, expected 16"),
        (REFUSED, ContentRefused, "a weapon"),
        (BackPressureError(4, 4), QueueFull, "has as many requests waiting as it takes; try again later"),
        (DeploymentUnavailableError(DeploymentID("Stage", "cosmos3")), NotReady, "is not running"),
    ],
    ids=["bad input", "refused frames", "back-pressure", "no replica"],
)
def test_what_another_attempt_cannot_change_is_not_retried(
    stage: str, raised: Exception, kind: type[ServingError], message: str
) -> None:
    fakes = stages(**{stage: FakeMethod(raised)})
    error = error_of(fakes, PICTURE)
    assert type(error) is kind
    assert message in error.message
    assert len(getattr(fakes, stage).calls) == 1


def test_a_full_stage_says_when_to_come_back_and_an_invalid_request_which_field_is_wrong() -> None:
    assert error_of(stages(denoise=FakeMethod(BackPressureError(4, 4)))).retry_after_s == 1
    assert error_of(stages(denoise=FakeMethod(INVALID))).param == "height"


async def closed_at(fakes: FakeStages, step: int) -> None:
    """Close the events of a request when the denoiser has done so many steps."""
    events: AsyncGenerator[Any, None] = fakes.graph().run(PARAMS, "m")
    async with aclosing(events):
        async for event in events:
            if event["step"] == step:
                break
    await asyncio.sleep(0.01)


def test_closing_the_events_cancels_the_denoise() -> None:
    fakes = stages()
    asyncio.run(closed_at(fakes, step=1))
    assert fakes.counts() == (1, 0, 1, 0, 0)
    assert fakes.denoise.calls[0].cancelled


async def cancelled_in(call: Callable[[], FakeCall | None], work: Awaitable[Any]) -> None:
    """Cancel the work once there is a call, and wait for its end."""
    task = asyncio.ensure_future(work)
    while call() is None:
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()
    await asyncio.sleep(0.01)  # the cancellation of a stream happens in the background


@pytest.mark.parametrize("stage", ["encode", "encode_reference", "decode_video"])
def test_cancelling_a_request_cancels_the_stage_that_works_on_it(stage: str) -> None:
    fakes = stages(**{stage: FakeMethod(asyncio.Event())})

    async def consume() -> None:
        async for _ in fakes.graph().run(PARAMS, "m", reference=PICTURE):
            pass

    calls = getattr(fakes, stage).calls
    asyncio.run(cancelled_in(lambda: calls[0] if calls else None, consume()))
    assert calls[0].cancelled
    assert len(calls) == 1


def test_requests_are_checked_together_and_refused_one_by_one() -> None:
    fakes = stages(encode=FakeMethod([IDS, InvalidInput("prompt", "é", "fewer tokens", "")]))

    async def scene() -> list[Any]:
        graph = fakes.graph()
        return await asyncio.gather(graph.check(PARAMS), graph.check(PARAMS), return_exceptions=True)

    fine, refused = asyncio.run(scene())
    assert fine is IDS
    assert isinstance(refused, InvalidRequest)
    assert refused.param == "prompt"
    assert [call.args for call in fakes.encode.calls] == [([PARAMS, PARAMS],)]


def test_the_budget_is_asked_of_another_replica_when_one_dies() -> None:
    fakes = stages(denoise=FakeMethod(DIED, None))
    assert asyncio.run(fakes.graph().budget()) is None
    assert len(fakes.denoise.calls) == 2
