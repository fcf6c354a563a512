"""The stages without Ray: what leaves them."""

import asyncio
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from fakes import OF_A_VIDEO, OF_AN_IMAGE
from numpy.typing import NDArray
from PIL import Image

from cosmos3_models import GenerationParams, InvalidInput
from cosmos3_models.checkpoint.folder import Checkpoint
from cosmos3_models.checkpoint.loading import load_video_encoder, resolve_device
from cosmos3_models.errors import Stopped
from cosmos3_models.media.pictures import encode_picture
from cosmos3_models.media.resize import cover
from cosmos3_models.references import ReferenceKind
from serve.graph.media_stages import VideoDecoder, VideoEncoder
from serve.graph.messages import LATENTS_COMPLETE, DecodedVideo
from serve.graph.worker import Patience, Turn

PATIENCE = Patience(lease_s=15, step_timeout_s=30)
PARAMS = GenerationParams(prompt="x", num_frames=17, height=32, width=48)
PICTURE = np.random.default_rng(0).integers(0, 256, (40, 30, 3), dtype=np.uint8)


def decoded(checkpoint: Path, num_frames: int) -> DecodedVideo:
    params = GenerationParams(prompt="x", num_frames=num_frames, height=32, width=48)
    shape = 1, Checkpoint.open(checkpoint).video_vae.z_dim, params.grid.frames, 2, 3
    latents = np.random.default_rng(0).standard_normal(shape).astype(np.float32)

    async def scene() -> DecodedVideo:
        return await VideoDecoder(str(checkpoint), "cpu", PATIENCE).decode(latents, params, arrays=True)

    return asyncio.run(scene())


@pytest.mark.parametrize(("frames", "names"), [(1, OF_AN_IMAGE), (5, OF_A_VIDEO[1:])], ids=["image", "video"])
def test_one_frame_leaves_the_decoder_as_an_image_and_more_as_a_track(
    tiny_checkpoint: Path, frames: int, names: tuple[str, ...]
) -> None:
    video = decoded(tiny_checkpoint, frames)
    assert tuple(picture.name for picture in video.pictures) == names
    assert video.frames is not None
    assert video.frames.shape == (frames, 32, 48, 3)
    assert (video.track is None) == (frames == 1)


def test_an_image_is_the_frame_itself(tiny_checkpoint: Path) -> None:
    video = decoded(tiny_checkpoint, 1)
    assert video.frames is not None
    with Image.open(io.BytesIO(video.pictures[0].data)) as image:
        assert np.array_equal(np.asarray(image), video.frames[0])


def encoded(checkpoint: Path, file: bytes, kind: ReferenceKind, params: GenerationParams = PARAMS) -> list[Any]:
    """What the encoder yields."""

    async def scene() -> list[Any]:
        stage = VideoEncoder(str(checkpoint), "cpu", PATIENCE)
        items = [item async for item in stage.encode(file, params, kind)]
        await stage.check_health()
        return items

    return asyncio.run(scene())


def expected(checkpoint: Path, frames: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The latents of these frames, whatever their size."""
    encoder = load_video_encoder(Checkpoint.open(checkpoint), *resolve_device("cpu"))
    latents: NDArray[np.float32] = encoder([cover(frames, PARAMS.height, PARAMS.width)]).numpy()
    return latents


def clip(frames: NDArray[np.uint8]) -> bytes:
    """A clip that keeps every pixel."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream: Any = container.add_stream("libx264rgb", rate=24, options={"qp": "0"})
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "rgb24"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))
    return buffer.getvalue()


def test_a_picture_becomes_one_latent_frame_of_the_requested_size(tiny_checkpoint: Path) -> None:
    latents, complete = encoded(tiny_checkpoint, encode_picture(PICTURE, "png"), "image")
    assert complete == LATENTS_COMPLETE
    assert (latents.dtype, latents.shape[2:], latents.flags.c_contiguous) == (np.float32, (1, 2, 3), True)
    np.testing.assert_allclose(latents, expected(tiny_checkpoint, PICTURE[None]), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("fields", "chosen"),
    [
        ({}, slice(5)),
        ({"condition_video_keep": "last"}, slice(7, 12)),
        ({"condition_frame_indexes_vision": (0, 2)}, slice(9)),
    ],
    ids=["the beginning", "the end", "further frames"],
)
def test_of_a_clip_only_the_frames_are_encoded_that_the_clean_latents_need(
    tiny_checkpoint: Path, fields: dict[str, Any], chosen: slice
) -> None:
    frames = np.random.default_rng(1).integers(0, 256, (12, 32, 48, 3), dtype=np.uint8)
    params = PARAMS.model_copy(update=fields)
    latents, _ = encoded(tiny_checkpoint, clip(frames), "video", params)
    np.testing.assert_allclose(latents, expected(tiny_checkpoint, frames[chosen]), rtol=0, atol=1e-6)


def test_a_file_that_is_no_picture_is_the_requests_fault_and_the_encoder_goes_on(tiny_checkpoint: Path) -> None:
    async def scene() -> list[Any]:
        stage = VideoEncoder(str(tiny_checkpoint), "cpu", PATIENCE)
        with pytest.raises(InvalidInput, match="input_reference: "):
            await anext(stage.encode(b"no picture", PARAMS, "image"))
        await stage.check_health()
        return [item async for item in stage.encode(encode_picture(PICTURE, "png"), PARAMS, "image")]

    assert asyncio.run(scene())[1] == LATENTS_COMPLETE


def test_an_encode_that_is_stopped_ends_before_it_computes(tiny_checkpoint: Path) -> None:
    turn = Turn(0)
    turn.stop()

    async def scene() -> None:
        stage = VideoEncoder(str(tiny_checkpoint), "cpu", PATIENCE)
        with pytest.raises(Stopped):
            stage._encode(encode_picture(PICTURE, "png"), PARAMS, "image", turn)

    asyncio.run(scene())


def test_the_encoders_own_work_may_take_no_longer_than_its_operations_explain(tiny_checkpoint: Path) -> None:
    """The file's reader has three minutes. Were they the encoder's as well, one that hangs would be replaced late."""
    turn, limits = Turn(0), list[float]()

    async def scene() -> None:
        stage = VideoEncoder(str(tiny_checkpoint), "cpu", PATIENCE)
        encoder: Any = stage._encoder

        def watched(frames: Iterator[Any]) -> Any:
            portions = []
            for some in frames:
                portions.append(some)
                limits.append(turn.limit_s(1))
            limits.append(turn.limit_s(1))
            return encoder(portions)

        stage._encoder = watched  # type: ignore[assignment]
        stage._encode(clip(np.zeros((5, 32, 48, 3), dtype=np.uint8)), PARAMS, "video", turn)

    asyncio.run(scene())
    assert limits == [1] * 6


def test_a_checkpoint_without_an_encoder_loads_none(tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Checkpoint, "has_video_encoder", False)

    async def scene() -> None:
        stage = VideoEncoder(str(tiny_checkpoint), "cpu", PATIENCE)
        await stage.check_health()
        with pytest.raises(RuntimeError, match="without a video encoder"):
            await anext(stage.encode(b"", PARAMS, "image"))

    asyncio.run(scene())
