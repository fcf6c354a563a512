"""The checkpoint that ships with the package: whole, in the package, read by diffusers, and good at what it is for."""

import re
import tomllib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tiny
from paths import ROOT

from benchmarks.judge import judge
from cosmos3_models import Cosmos3Pipeline
from cosmos3_models.checkpoint.configs import read_json
from cosmos3_models.checkpoint.folder import DEMO_FOLDER, PROMPT_GUIDE, Checkpoint
from training.captions import read_caption, write_caption
from training.export import CARD, LARGEST_BYTES
from training.labels import draw_labels
from training.prompt_guide import EXAMPLES, prompt_guide, table
from training.recipe import Recipe

PROMPT = "A large yellow star bounces slowly up and down on a dark background."


@pytest.fixture(scope="module")
def pipeline() -> Cosmos3Pipeline:
    return Cosmos3Pipeline.from_pretrained("demo", "cpu")


def files() -> set[Path]:
    return {path for path in DEMO_FOLDER.rglob("*") if path.is_file()}


def test_the_demo_is_what_the_recipe_says() -> None:
    checkpoint, recipe = Checkpoint.open("demo"), Recipe.read()
    mean, std = checkpoint.video_vae.latents_mean, checkpoint.video_vae.latents_std
    assert checkpoint.name == Checkpoint.open(DEMO_FOLDER).name == "cosmos3-demo"
    assert checkpoint.transformer == recipe.transformer
    assert checkpoint.sound == recipe.sound
    assert checkpoint.video_vae == recipe.with_statistics(list(mean), list(std)).video_vae
    assert checkpoint.defaults.params(prompt="-") == recipe.generation


def test_the_card_is_that_of_training() -> None:
    assert (DEMO_FOLDER / "README.md").read_text() == CARD.read_text()


def test_guide_and_card_list_what_the_grammar_has() -> None:
    assert read_json(DEMO_FOLDER / PROMPT_GUIDE) == prompt_guide()
    assert table() in CARD.read_text()


def test_the_guides_words_are_those_of_all_captions() -> None:
    random = np.random.default_rng(0)
    labels = draw_labels(random, 5000)
    captions = " ".join(write_caption(labels, scene, random) for scene in range(len(labels)))
    assert sorted(set(re.findall("[a-z]+", captions.lower()))) == prompt_guide()["words"]


@pytest.mark.parametrize("example", EXAMPLES)
def test_the_examples_are_captions(example: str) -> None:
    for shape in read_caption(example):
        assert set(shape) == {"kind", "colour", "size", "motion", "direction", "speed"}
    assert set(re.findall("[a-z]+", example.lower())) <= set(prompt_guide()["words"])


def test_every_file_of_the_demo_is_in_the_package_and_small() -> None:
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    packaged = {path for pattern in patterns["cosmos3_models"] for path in DEMO_FOLDER.parent.glob(pattern)}
    assert files() <= packaged
    assert sum(path.stat().st_size for path in files()) <= LARGEST_BYTES


def test_diffusers_makes_the_same_video_with_sound_of_the_shipped_folder(
    pipeline: Cosmos3Pipeline, record_property: Callable[[str, object], None]
) -> None:
    params = pipeline.checkpoint.defaults.params(
        prompt=PROMPT,
        negative_prompt="",
        num_frames=9,
        num_inference_steps=4,
        generate_sound=True,
        append_metadata=False,
    )
    errors = tiny.compare_with_diffusers(pipeline, params).errors
    record_property("relative errors", errors)
    assert errors["latents"] <= 1e-5
    assert errors["pixels"] <= 2e-5, "the decoder enlarges what fp32 rounds"
    assert errors["waveform"] <= 1e-4, "its sines enlarge it more"


def test_the_demo_shows_and_sounds_what_its_prompt_says(pipeline: Cosmos3Pipeline) -> None:
    params = pipeline.checkpoint.defaults.params(prompt=PROMPT, generate_sound=True)
    made = pipeline(params)
    assert made.frames.shape == (params.num_frames, params.height, params.width, 3)
    assert made.waveform is not None and made.waveform.shape[0] == 2
    verdict = judge(made.frames, made.fps, made.waveform, made.sample_rate, read_caption(PROMPT))
    wrong = [name for name in ("count", "colour", "kind", "motion", "pitch") if not all(verdict.right[name])]
    assert wrong == []
