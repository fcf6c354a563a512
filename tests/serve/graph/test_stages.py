"""The stages without Ray: what leaves them."""

import asyncio
import io
from pathlib import Path

import numpy as np
import pytest
from fakes import OF_A_VIDEO, OF_AN_IMAGE
from PIL import Image

from cosmos3_models import GenerationParams
from cosmos3_models.checkpoint.folder import Checkpoint
from serve.graph.messages import DecodedVideo
from serve.graph.stages import VideoDecoder
from serve.graph.worker import Patience

PATIENCE = Patience(lease_s=15, step_timeout_s=30)


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
