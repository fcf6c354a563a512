"""The judge of what is made from pictures and clips, on what would be right and on what an untrained model makes."""

import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import small_demo

from benchmarks import reference_quality
from benchmarks.reference_quality import CASES, Frames, Maker, answers, psnr
from cosmos3_models import Cosmos3Pipeline
from training.recipe import Recipe
from training.world import Draw, World


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small demo, untrained."""
    return small_demo.untrained(tmp_path_factory.mktemp("demo"))


class Perfect:
    """Makes what really comes next, or with ``still`` what stops at once."""

    def __init__(self, pipeline: Cosmos3Pipeline, *, still: bool) -> None:
        self.pipeline = pipeline
        self.still = still
        self.next: Frames = np.empty((0,))

    def make(self, _prompt: str, _seed: int, given: Frames, num_frames: int) -> tuple[Frames, Frames]:
        made = self.next[:num_frames].copy()
        if self.still:
            made[len(given) :] = made[len(given) - 1]
        return made, given


@pytest.fixture(scope="module")
def demo() -> Cosmos3Pipeline:
    return Cosmos3Pipeline.from_pretrained("demo", "cpu")


@cache
def real_frames(index: int, case: reference_quality.Case) -> Frames:
    random = np.random.default_rng([0, index])
    world = World.of(Recipe.read())
    scene = world.scenes_of(reference_quality.draw_labels(random, 1, "unseen"), Draw(0, index, reference_quality.CPU))
    return world.pictures(reference_quality.begun(scene, world, case))


@pytest.mark.parametrize("case", [case for case in CASES if case.given > 1], ids=str)
@pytest.mark.parametrize("still", [False, True])
def test_what_goes_on_as_it_began_is_right_and_what_stops_is_not(
    demo: Cosmos3Pipeline, case: reference_quality.Case, still: bool
) -> None:
    maker, total = Perfect(demo, still=still), reference_quality.Answers()
    for index in range(6):
        maker.next = real_frames(index, case)
        total.add(answers(maker, case, index))  # type: ignore[arg-type]
    row = total.row()
    assert row["first_frame_psnr_db"] == row["decoder_limit_db"] == 99
    assert (row["goes on"] >= 0.95) != still
    assert (row["jump_px"] < 1) or still


def test_the_command_measures_every_case(checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "references.json"
    reference_quality.main(f"--checkpoint {checkpoint} --device cpu --prompts 1 --processes 1 --out {out}".split())
    rows = json.loads(out.read_text())["rows"]
    assert [row["case"] for row in rows] == [case.name for case in CASES]
    assert all(row["first_frame_psnr_db"] == row["decoder_limit_db"] for row in rows[1:4]), "it is the frame given"
    assert set(rows[4]) == {"case", "count", "colour", "kind", "size"}


def test_decibels() -> None:
    black = np.zeros((2, 2, 3), np.uint8)
    assert psnr(black, black) == pytest.approx(99)
    assert psnr(black + 51, black) == pytest.approx(20 * np.log10(5))


def test_the_maker_makes_an_image(checkpoint: Path) -> None:
    made, _ = Maker(str(checkpoint), "cpu").make("A red ball.", 0, np.empty((0, 64, 64, 3), np.uint8), 1)
    assert made.shape == (1, 64, 64, 3)
