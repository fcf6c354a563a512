"""What the pipeline does with pictures and clips; the numbers are compared with diffusers in test_parity."""

import shutil
from pathlib import Path
from typing import Any

import media_files
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from cosmos3_models import Cosmos3Pipeline, GenerationParams, InvalidInput

FILM = media_files.film(9, 32, 48)


@pytest.fixture(scope="module")
def pipeline(tiny_checkpoint: Path) -> Cosmos3Pipeline:
    return Cosmos3Pipeline.from_pretrained(tiny_checkpoint, "cpu")


def params(**fields: Any) -> GenerationParams:
    small = {"prompt": "x", "num_frames": 9, "height": 32, "width": 48, "num_inference_steps": 1, "guidance_scale": 1}
    return GenerationParams(**(small | fields))


def test_a_file_gives_the_same_video_as_its_pixels(pipeline: Cosmos3Pipeline, tmp_path: Path) -> None:
    picture, clip = tmp_path / "a.png", tmp_path / "b.mp4"
    Image.fromarray(FILM[0]).save(picture)
    clip.write_bytes(media_files.lossless(FILM))
    made = [pipeline(params(), image=image).frames for image in (FILM[0], Image.fromarray(FILM[0]), picture)]
    assert all(np.array_equal(frames, made[0]) for frames in made)
    made = [pipeline(params(), video=video).frames for video in (FILM, str(clip))]
    assert np.array_equal(*made)


def test_a_picture_is_the_first_latent_frame_and_a_clip_the_first_two(pipeline: Cosmos3Pipeline) -> None:
    still, moving = (pipeline(params(), **{kind: given}) for kind, given in (("image", FILM[0]), ("video", FILM)))
    assert torch.equal(still.video_latents[:, :, 0], moving.video_latents[:, :, 0])
    assert not torch.equal(still.video_latents[:, :, 1], moving.video_latents[:, :, 1])
    assert still.timings["video_encode"] > 0


def test_only_the_frames_that_clean_latents_depend_on_are_encoded(
    pipeline: Cosmos3Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts: list[int] = []
    encoder = pipeline.video_encoder
    assert encoder is not None
    monkeypatch.setattr(
        encoder, "forward", lambda frames, forward=encoder.forward: forward(_counted(frames, counts)), raising=True
    )
    pipeline(params(), image=FILM[0])
    pipeline(params(), video=FILM)
    assert counts == [1, 5]


def _counted(frames: Any, counts: list[int]) -> Any:
    portions = list(frames)
    counts.append(sum(len(portion) for portion in portions))
    return portions


@pytest.mark.parametrize(
    ("changes", "given", "told"),
    [
        ({}, {"image": FILM[0], "video": FILM}, "input_reference: got 'a picture and a clip', expected one of the two"),
        ({}, {"image": FILM}, r"input_reference: .*expected uint8 RGB \(h, w, 3\)"),
        ({"num_frames": 1}, {"image": FILM[0]}, "num_frames: got 1, expected at least 5"),
        ({"num_frames": 5}, {"video": FILM}, "num_frames: got 5, expected at least 9"),
        ({"condition_frame_indexes_vision": 0}, {}, "condition_frame_indexes_vision: .* expected a picture or clip"),
    ],
)
def test_references_that_make_no_sense_are_refused(
    pipeline: Cosmos3Pipeline, changes: dict[str, Any], given: dict[str, Any], told: str
) -> None:
    with pytest.raises(InvalidInput, match=f"^{told}"):
        pipeline(params(**changes), **given)


def test_a_checkpoint_without_encoder_makes_videos_from_text_alone(tiny_checkpoint: Path, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    shutil.copytree(tiny_checkpoint, folder)
    shards = sorted((folder / "vae").glob("*.safetensors"))
    tensors = {name: tensor for shard in shards for name, tensor in load_file(shard).items()}
    for file in (*shards, *(folder / "vae").glob("*.index.json")):
        file.unlink()
    kept = {name: tensor for name, tensor in tensors.items() if not name.startswith(("encoder.", "quant_conv."))}
    save_file(kept, folder / "vae" / "diffusion_pytorch_model.safetensors")
    pipeline = Cosmos3Pipeline.from_pretrained(folder, "cpu")
    assert len(pipeline(params()).frames) == 9
    with pytest.raises(InvalidInput, match=r"^input_reference: .* because the checkpoint has no video encoder"):
        pipeline(params(), image=FILM[0])


def test_one_frame_is_an_image(pipeline: Cosmos3Pipeline) -> None:
    assert pipeline(params(num_frames=1)).frames.shape == (1, 32, 48, 3)
