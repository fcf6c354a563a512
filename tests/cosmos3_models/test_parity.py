"""The whole pipeline in fp32 against diffusers' on the same files and noise, and against PhyAI's recorded results."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from paths import ROOT

from cosmos3_models import Cosmos3Pipeline, GenerationParams
from cosmos3_models.params import SigmaSchedule
from cosmos3_models.sampling.denoise import draw_noise
from cosmos3_models.sampling.schedules import make_schedule
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


@pytest.fixture(scope="module")
def pipeline(tiny_checkpoint: Path) -> Cosmos3Pipeline:
    return Cosmos3Pipeline.from_pretrained(tiny_checkpoint, "cpu")


@pytest.mark.parametrize("sound", [False, True], ids=["T2V", "T2AV"])
@pytest.mark.parametrize("case", CASES)
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
