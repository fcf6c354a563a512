"""The guard over frames: nothing of a refused video leaves the decoder, and the guard closes."""

import asyncio
import os
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import numpy as np
import pytest
import scripted_guard
from numpy.typing import NDArray
from sample_media import clip

from cosmos3_models import GenerationParams
from cosmos3_models.checkpoint.folder import Checkpoint
from serve.errors import ContentRefused
from serve.graph import worker
from serve.graph.media_stages import VideoDecoder
from serve.graph.worker import Broken, Patience

PARAMS = GenerationParams(prompt="x", num_frames=17, height=32, width=48)
IMAGE = PARAMS.model_copy(update={"num_frames": 1})
FADE = clip(width=48, height=32, frames=2)  # a black frame and a white one
PATIENCE = Patience(lease_s=15, step_timeout_s=30)

Frames = NDArray[np.uint8]


def with_decoder(
    checkpoint: Path, scenario: Callable[[VideoDecoder], Awaitable[None]], patience: Patience = PATIENCE
) -> None:
    """A scenario on a decoder with the scripted guard."""

    async def scene() -> None:
        await scenario(VideoDecoder(str(checkpoint), "cpu", patience, scripted_guard.settings()))

    asyncio.run(scene())


def latents(checkpoint: Path, params: GenerationParams = PARAMS) -> NDArray[np.float32]:
    shape = 1, Checkpoint.open(checkpoint).video_vae.z_dim, params.grid.frames, 2, 3
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


class Answers:
    """What the guard says of frames, which it keeps."""

    def __init__(self) -> None:
        self.answer: Callable[[Frames], object] = lambda _: None
        self.seen: list[Frames] = []

    def __call__(self, frames: Frames) -> object:
        self.seen.append(frames.copy())
        return self.answer(frames)


@pytest.fixture
def guard(monkeypatch: pytest.MonkeyPatch) -> Answers:
    answers = Answers()
    monkeypatch.setattr(scripted_guard.Scripted, "check_frames", lambda _, frames: answers(frames))
    return answers


def test_the_guard_sees_every_frame_that_leaves_and_changes_none(tiny_checkpoint: Path, guard: Answers) -> None:
    async def scenario(decoder: VideoDecoder) -> None:
        guard.seen.clear()
        guarded = await decoder.decode(latents(tiny_checkpoint), PARAMS, arrays=True)
        assert len(guard.seen) > 1, "chunk by chunk"
        assert guarded.frames is not None
        assert np.array_equal(np.concatenate(guard.seen), guarded.frames)
        free = await VideoDecoder(str(tiny_checkpoint), "cpu", PATIENCE).decode(latents(tiny_checkpoint), PARAMS)
        assert (guarded.track, guarded.pictures) == (free.track, free.pictures)

    with_decoder(tiny_checkpoint, scenario)


@pytest.mark.parametrize("chunk", [0, 1], ids=["first", "last"])
def test_one_refused_chunk_is_enough(tiny_checkpoint: Path, guard: Answers, chunk: int) -> None:
    async def scenario(decoder: VideoDecoder) -> None:
        guard.seen.clear()
        guard.answer = lambda _: "a weapon" if len(guard.seen) > chunk else None
        with pytest.raises(ContentRefused, match=r"^frames refused by this server's content policy: a weapon$"):
            await decoder.decode(latents(tiny_checkpoint), PARAMS)
        assert len(guard.seen) == chunk + 1, "the replica does not prove its health, and nothing more is decoded"
        await decoder.check_health()
        guard.answer = lambda _: None
        assert (await decoder.decode(latents(tiny_checkpoint), PARAMS)).track

    with_decoder(tiny_checkpoint, scenario)


def test_images_previews_and_continued_clips_are_checked_as_well(tiny_checkpoint: Path, guard: Answers) -> None:
    async def scenario(decoder: VideoDecoder) -> None:
        guard.answer = lambda _: "a weapon"
        with pytest.raises(ContentRefused):
            await decoder.decode(latents(tiny_checkpoint, IMAGE), IMAGE)
        with pytest.raises(ContentRefused):
            await anext(decoder.preview(latents(tiny_checkpoint)))
        guard.answer = lambda frames: "too white" if frames.min() == 255 else None
        await decoder.decode(latents(tiny_checkpoint), PARAMS)
        with pytest.raises(ContentRefused):
            await decoder.decode(latents(tiny_checkpoint), PARAMS, clip=FADE, clip_frames=2)

    with_decoder(tiny_checkpoint, scenario)


def crash(_: Frames) -> None:
    raise RuntimeError("the classifier has no weights")


def paint(frames: Frames) -> None:
    frames[:] = 0


@pytest.mark.parametrize(
    ("answer", "error"),
    [(crash, RuntimeError), (lambda _: False, TypeError), (lambda frames: frames, TypeError), (paint, ValueError)],
    ids=["crash", "no reason", "frames", "changed frames"],
)
def test_a_guard_that_fails_delivers_nothing(
    tiny_checkpoint: Path, guard: Answers, answer: Callable[[Frames], object], error: type[Exception]
) -> None:
    async def scenario(decoder: VideoDecoder) -> None:
        guard.seen.clear()
        guard.answer = lambda frames: answer(frames) if len(guard.seen) == 1 else None
        with pytest.raises(error):
            await decoder.decode(latents(tiny_checkpoint), PARAMS)
        await decoder.check_health()

    with_decoder(tiny_checkpoint, scenario)


def test_a_guard_that_hangs_ends_its_replica(
    tiny_checkpoint: Path, guard: Answers, monkeypatch: pytest.MonkeyPatch
) -> None:
    hanging, released, statuses = threading.Event(), threading.Event(), list[int]()
    monkeypatch.setattr(os, "_exit", statuses.append)
    monkeypatch.setattr(worker, "EXIT_DELAY_S", 0.0)
    monkeypatch.setattr(
        scripted_guard,
        "settings",
        lambda: scripted_guard.GuardSettings(import_path="scripted_guard:Scripted", timeout_s=0.1),
    )

    def hang(_: Frames) -> str:
        hanging.set()
        released.wait(60)
        return "late"

    async def scenario(decoder: VideoDecoder) -> None:
        guard.answer = hang
        decode = asyncio.create_task(decoder.decode(latents(tiny_checkpoint), PARAMS))
        assert await asyncio.to_thread(hanging.wait, 60)
        deadline = time.monotonic() + 60
        with pytest.raises(Broken, match="a step hangs"):
            while time.monotonic() < deadline:
                await decoder.check_health()
                await asyncio.sleep(0.01)
        released.set()
        with pytest.raises(ContentRefused):
            await decode
        while not statuses:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.01)

    with_decoder(tiny_checkpoint, scenario, Patience(lease_s=15, step_timeout_s=0.1))
    assert statuses == [worker.EXIT_STATUS]


def test_the_decoder_starts_with_a_guard_that_refuses_its_first_frames(tiny_checkpoint: Path, guard: Answers) -> None:
    async def scenario(decoder: VideoDecoder) -> None:
        guard.answer = lambda _: None
        assert (await decoder.decode(latents(tiny_checkpoint), PARAMS)).track

    guard.answer = lambda _: "too dark"
    with_decoder(tiny_checkpoint, scenario)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("Absent", "guard: .* importing it raised AttributeError"),
        ("Unmade", "guard: .* its constructor raised FileNotFoundError: no weights"),
        ("Broken", "no weights"),
    ],
)
def test_the_decoder_does_not_start_with_a_guard_that_cannot_check(tiny_checkpoint: Path, name: str, why: str) -> None:
    with pytest.raises((ValueError, OSError), match=why):
        VideoDecoder(str(tiny_checkpoint), "cpu", PATIENCE, scripted_guard.settings(name))
