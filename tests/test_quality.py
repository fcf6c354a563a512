"""The measurement of quality, with a model that knows nothing."""

import argparse
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import small_demo
import tiny

from benchmarks.quality import Case, cases, draw_prompts, measure, table
from cosmos3_models import Cosmos3Pipeline
from training import export, sound_autoencoder, tokenizer, transformer, video_vae
from training.captions import read_caption


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Cosmos3Pipeline:
    """The small demo, untrained."""
    recipe, out = small_demo.recipe(), tmp_path_factory.mktemp("demo")
    tokenizer.write(recipe, out, tokenizer.build(recipe, captions=100))
    parts = export.Parts(
        tiny.randomize(transformer.build(recipe), 0),
        tiny.randomize(video_vae.build(recipe), 1),
        tiny.randomize(sound_autoencoder.build(recipe), 2),
    )
    return Cosmos3Pipeline.from_pretrained(export.export(recipe, parts, out, out / "checkpoint"), "cpu")


def test_prompts_state_everything_and_stay_the_same() -> None:
    prompts = draw_prompts("held_out", 5)
    assert prompts == draw_prompts("held_out", 9)[:5]
    assert [read_caption(prompt.text) for prompt in prompts] == [prompt.stated for prompt in prompts]


def test_each_case_changes_one_default(pipeline: Cosmos3Pipeline) -> None:
    args = argparse.Namespace(parts=["unseen"], guidance=[1, 3], schedules=["karras"], steps=[4])
    found = list(cases(args, pipeline.checkpoint.defaults.params(prompt="-")))
    assert found == [
        Case("unseen", 3, "flow", 2),
        Case("unseen", 1, "flow", 2),
        Case("unseen", 3, "karras", 2),
        Case("unseen", 3, "flow", 4),
    ]


def test_a_row_has_the_case_its_time_and_shares_of_right_answers(pipeline: Cosmos3Pipeline) -> None:
    with ThreadPoolExecutor(1) as judges:
        row = measure(pipeline, Case("unseen", 3, "flow", 1), draw_prompts("unseen", 2), judges)
    json.dumps(row)
    assert row["seconds"] > 0
    assert all(0 <= row[name] <= 1 for name in ("count", "colour", "kind", "direction", "pitch"))
    assert table([row, row]).count("\n") == 3


def test_an_export_too_large_to_ship_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "LARGEST_BYTES", 10_000)
    recipe = small_demo.recipe()
    tokenizer.write(recipe, tmp_path, tokenizer.build(recipe, captions=10))
    parts = export.Parts(transformer.build(recipe), video_vae.build(recipe), sound_autoencoder.build(recipe))
    with pytest.raises(ValueError, match="expected at most 10000"):
        export.export(recipe, parts, tmp_path, tmp_path / "checkpoint")
