"""The whole pipeline in fp32 against diffusers' on the same files and noise, and against PhyAI's recorded results."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from numpy.typing import NDArray
from paths import ROOT

from cosmos3_models import Cosmos3Pipeline, GenerationParams
from cosmos3_models.media.resize import cover
from cosmos3_models.params import SigmaSchedule
from cosmos3_models.references import ReferenceKind, clean_frames
from cosmos3_models.sampling.denoise import draw_noise
from cosmos3_models.sampling.schedules import make_schedule
from cosmos3_models.shapes import pixel_frames_needed
from cosmos3_models.text.prompt import PromptIds

TOLERANCE = 1e-5
PHYAI = np.load(ROOT / "tests" / "data" / "phyai_tiny_fp32.npz")

REQUEST = {
    "prompt": "A red sports car driving along a coastal road at sunset.",
    "negative_prompt": "blurry, low quality",
    "num_frames": 9,
    "height": 64,
    "width": 96,
    "num_inference_steps": 4,
    "append_metadata": False,
}
CASES = {
    "karras": {"sigma_schedule": "karras"},
    "flow": {"sigma_schedule": "flow"},
    "odd grid": {"height": 80, "width": 112},
    "one frame": {"num_frames": 1},
    "fps 16": {"fps": 16.0},
    "fps 30": {"fps": 30.0},
    "without guidance": {"guidance_scale": 1.0},
    "eight steps, shift 5": {"num_inference_steps": 8, "flow_shift": 5.0},
}
SILENT = ("one frame", "karras", "flow", "odd grid", "without guidance")  # an image has no sound


LONGER = {"num_frames": 17, "height": 48, "width": 80}
PICTURE, CLIP = ((*shape, 3) for shape in [(50, 70), (20, 48, 80)])
CLEAN_CASES: dict[str, tuple[dict[str, Any], tuple[int, ...]]] = {
    "picture": ({}, PICTURE),
    "upright picture": ({"height": 80, "width": 48}, (90, 33, 3)),
    "picture without guidance": ({"guidance_scale": 1.0}, PICTURE),
    "picture, karras": ({"sigma_schedule": "karras"}, PICTURE),
    "picture, eight steps at shift 5": ({"num_inference_steps": 8, "flow_shift": 5.0}, PICTURE),
    "picture with its metadata": ({"append_metadata": True, "guidance_scale": 1.0}, PICTURE),
    "clip": ({}, CLIP),
    "end of a clip": ({"condition_video_keep": "last", "sigma_schedule": "checkpoint"}, CLIP),
    "one frame of a clip": ({"condition_frame_indexes_vision": 0}, CLIP),
    "latent frames 0 and 3": ({"condition_frame_indexes_vision": (0, 3)}, CLIP),
    "latent frame 2 of a clip's end": ({"condition_frame_indexes_vision": 2, "condition_video_keep": "last"}, CLIP),
    "clip too short": ({"condition_frame_indexes_vision": (0, 2)}, (3, *CLIP[1:])),
    "whole clip": ({"condition_frame_indexes_vision": (0, 1, 2, 3, 4)}, CLIP),
}
CLEAN_SILENT = ("picture", "picture without guidance", "clip", "latent frames 0 and 3")


@pytest.fixture(scope="module")
def pipeline(tiny_checkpoint: Path) -> Cosmos3Pipeline:
    return Cosmos3Pipeline.from_pretrained(tiny_checkpoint, "cpu")


def named(value: str | bool) -> str:
    """Part of a test's name: a case, or whether it has sound."""
    if isinstance(value, str):
        return value
    return "with sound" if value else "silent"


@pytest.mark.parametrize(
    ("case", "sound"),
    [(case, True) for case in CASES if case != "one frame"] + [(case, False) for case in SILENT],
    ids=named,
)
def test_a_video_equals_that_of_diffusers(
    pipeline: Cosmos3Pipeline,
    case: str,
    sound: bool,
    record_property: Callable[[str, object], None],
) -> None:
    params = GenerationParams(**(REQUEST | CASES[case]), generate_sound=sound)
    compared = tiny.compare_with_diffusers(pipeline, params)
    record_property("relative errors", compared.errors)
    assert ("waveform" in compared.errors) == sound
    assert all(error <= TOLERANCE for error in compared.errors.values()), compared.errors
    rounded, pixels = compared.result.frames / 255.0, compared.pixels[0].permute(1, 2, 3, 0).numpy()
    assert np.abs(rounded - pixels).max() <= 0.5 / 255 + 1e-6


@pytest.mark.parametrize(
    ("case", "sound"),
    [(case, True) for case in CLEAN_CASES] + [(case, False) for case in CLEAN_SILENT],
    ids=named,
)
def test_a_video_from_a_picture_or_clip_equals_that_of_diffusers(
    pipeline: Cosmos3Pipeline, case: str, sound: bool, record_property: Callable[[str, object], None]
) -> None:
    changes, shape = CLEAN_CASES[case]
    params = GenerationParams(**(REQUEST | LONGER | changes), generate_sound=sound)
    given = np.random.RandomState(1).randint(0, 256, shape).astype(np.uint8)
    kind: ReferenceKind = "image" if given.ndim == 3 else "video"
    compared = tiny.compare_with_diffusers(pipeline, params, **{kind: given})
    record_property("relative errors", compared.errors)
    assert ("waveform" in compared.errors) == sound
    assert all(error <= TOLERANCE for error in compared.errors.values()), compared.errors
    indexes = list(clean_frames(params, kind))
    assert torch.equal(compared.result.video_latents[:, :, indexes], encoded(pipeline, params, given)[:, :, indexes])


def encoded(pipeline: Cosmos3Pipeline, params: GenerationParams, given: NDArray[np.uint8]) -> torch.Tensor:
    """The latents of the video that repeats the picture, or begins with the clip and stands still at its end."""
    assert pipeline.video_encoder is not None
    frames = given[None] if given.ndim == 3 else given
    needed = pixel_frames_needed(clean_frames(params, "image" if given.ndim == 3 else "video"))
    frames = frames[:needed] if params.condition_video_keep == "first" else frames[-needed:]
    frames = np.concatenate([frames, *[frames[-1:]] * (needed - len(frames))])
    return pipeline.video_encoder([cover(frames, params.height, params.width)])


def test_an_image_equals_that_of_diffusers_with_its_own_sentence(
    pipeline: Cosmos3Pipeline, record_property: Callable[[str, object], None]
) -> None:
    """Guidance is off: diffusers has a sentence for the negative prompt as well, which the official pipeline lacks."""
    changes = {"num_frames": 1, "append_metadata": True, "guidance_scale": 1.0}
    compared = tiny.compare_with_diffusers(pipeline, GenerationParams(**(REQUEST | changes)))
    record_property("relative errors", compared.errors)
    assert all(error <= TOLERANCE for error in compared.errors.values()), compared.errors
    assert compared.result.frames.shape == (1, 64, 96, 3)


@pytest.mark.parametrize("schedule", ["karras", "phyai"])
def test_the_sigmas_equal_those_of_phyai(pipeline: Cosmos3Pipeline, schedule: SigmaSchedule) -> None:
    ours = make_schedule(schedule, 4, 10.0, pipeline.checkpoint.scheduler)
    assert np.array_equal(ours.sigmas, PHYAI[f"{schedule}_t2v_sigmas"])
    assert ours.timesteps == PHYAI[f"{schedule}_t2v_timesteps"].tolist()


@pytest.mark.parametrize("sound", [False, True], ids=["t2v", "t2av"])
@pytest.mark.parametrize("schedule", ["karras", "phyai"])
def test_the_latents_equal_those_of_phyai(
    pipeline: Cosmos3Pipeline, schedule: SigmaSchedule, sound: bool, record_property: Callable[[str, object], None]
) -> None:
    params = GenerationParams(**(REQUEST | {"height": 80, "width": 112}), sigma_schedule=schedule, generate_sound=sound)
    ids = PromptIds(PHYAI["cond_ids"].ravel(), PHYAI["uncond_ids"].ravel())
    latents = pipeline.denoiser(ids, params)
    run = f"{schedule}_{'t2av' if sound else 't2v'}"
    error = tiny.relative_error(latents.video, PHYAI[f"{run}_latent"])
    record_property("relative errors", {"latents against PhyAI": error})
    assert error <= TOLERANCE


def test_the_same_noise_is_drawn_as_by_phyai(pipeline: Cosmos3Pipeline) -> None:
    params = GenerationParams(**(REQUEST | {"height": 80, "width": 112}), generate_sound=True)
    noise = draw_noise(pipeline.denoiser.latent_shapes(params), params.seed)
    assert np.array_equal(noise.video.numpy().ravel(), PHYAI["noise"].ravel())
    assert np.array_equal(noise.sound.numpy().ravel(), PHYAI["snoise"].ravel())


def test_given_noise_takes_the_place_of_the_seed(pipeline: Cosmos3Pipeline) -> None:
    params = GenerationParams(**REQUEST, generate_sound=True)
    noise = draw_noise(pipeline.denoiser.latent_shapes(params), 7)
    given = pipeline(params, latents=noise.video, sound_latents=noise.sound)
    seeded = pipeline(GenerationParams(**REQUEST, generate_sound=True, seed=7))
    assert torch.equal(given.video_latents, seeded.video_latents)
    assert torch.equal(given.sound_latents, seeded.sound_latents)
