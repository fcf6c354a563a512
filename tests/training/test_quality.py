"""The measurement of quality, with a model that knows nothing."""

import json
from pathlib import Path

import av
import numpy as np
import pytest
import small_demo

from benchmarks import quality, reuse, strip
from benchmarks.judge import Verdict
from benchmarks.quality import Clip, compare, table
from benchmarks.quality_cases import cases, draw_prompts, params_of
from cosmos3_models.checkpoint.folder import Checkpoint
from cosmos3_models.params import GenerationDefaults
from training import export, sound_autoencoder, tokenizer, transformer, video_vae
from training.captions import read_caption
from training.labels import KINDS, MOTIONS


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small demo, untrained."""
    return small_demo.untrained(tmp_path_factory.mktemp("demo"))


def clip(latent: float, **right: bool) -> Clip:
    verdict = Verdict()
    for name, answer in right.items():
        verdict.right[name].append(answer)
    return Clip(verdict, np.full((1, 1), latent, dtype=np.float32))


def test_prompts_state_everything_and_stay_the_same() -> None:
    prompts = draw_prompts("held_out", 5)
    assert prompts == draw_prompts("held_out", 9)[:5]
    assert [read_caption(prompt.text) for prompt in prompts] == [prompt.stated for prompt in prompts]


def test_each_case_changes_one_default_and_none_repeats_them() -> None:
    defaults = GenerationDefaults(num_inference_steps=2, guidance_scale=3, velocity_reuse=3)
    found = cases(defaults, guidance=[1, 3], schedules=["flow", "karras"], steps=[4], reuse=[(3, 2)], fp8=True)
    exact = found[0].settings
    changed = {case.name: dict(case.settings.items() - exact.items()) for case in found}
    assert exact["velocity_reuse"] == 0, "what others are compared with is exact, whatever a folder's defaults are"
    assert changed == {
        "default": {},
        "guidance 1": {"guidance_scale": 1},
        "karras": {"sigma_schedule": "karras"},
        "4 steps": {"num_inference_steps": 4},
        "velocity reuse 3, guidance reuse 2": {"velocity_reuse": 3, "guidance_reuse": 2},
        "fp8 linears": {"fp8_linears": True},
        "fp8 attention": {"fp8_attention": True},
        "fp8 linears, fp8 attention": {"fp8_linears": True, "fp8_attention": True},
        "fp8 linears, fp8 attention, velocity reuse 5": {
            "fp8_linears": True,
            "fp8_attention": True,
            "velocity_reuse": 5,
        },
    }
    params = params_of(defaults, found[1], draw_prompts("unseen", 1)[0], seed=5)
    assert (params.guidance_scale, params.num_inference_steps, params.seed, params.generate_sound) == (1, 2, 5, True)


def test_a_fall_of_more_than_a_point_is_marked() -> None:
    default = [clip(1, colour=True, kind=True), clip(2, colour=True, kind=False)]
    same, fallen = compare(default, default), compare([clip(1.5, colour=True, kind=False), default[1]], default)
    assert (same["fall"], same["fall_error"], same["latent_error"], same["worse"]) == (0, 0, 0, False)
    assert same["mean"] == 0.75 and same["accuracy"] == {"colour": 1, "kind": 0.5}
    assert (fallen["fall"], fallen["latent_error"], fallen["worse"]) == (0.25, 0.25, True)


def test_the_error_of_a_fall_is_that_of_drawing_the_prompts_anew() -> None:
    """By the bootstrap, with an attribute that one clip in six has."""
    draw = np.random.default_rng(0)
    default, fallen = (
        [clip(1, **{"kind": kind} | ({"click": click} if i % 6 == 0 else {})) for i, (kind, click) in enumerate(right)]
        for right in (draw.random((2, 120, 2)) < 0.8).tolist()
    )
    falls = []
    for _ in range(400):
        drawn = draw.integers(120, size=120)
        falls.append(compare([fallen[i] for i in drawn], [default[i] for i in drawn])["fall"])
    assert compare(fallen, default)["fall_error"] == pytest.approx(np.std(falls), rel=0.15)


def test_the_command_measures_every_case_whatever_the_number_of_processes(checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "quality.json"
    quality.main(
        f"--checkpoint {checkpoint} --device cpu --prompts 2 --guidance 1 --schedules --steps 1 --reuse "
        f"--fp8 --processes 2 --repeats 1 --out {out}".split()
    )
    rows = json.loads(out.read_text())["rows"]
    cases_of = {part: [row["case"] for row in rows if row["part"] == part] for part in quality.PARTS}
    assert cases_of["unseen"][:4] == ["default", "guidance 1", "1 steps", "fp8 linears"]
    assert cases_of["held_out"] == ["default", "guidance 1"], "no fast modes unless asked for"
    assert all(("refused" in row) == (row["group"] == "fp8") for row in rows), "a CPU has no fp8"
    assert rows[0]["latent_error"] == 0 and rows[1]["latent_error"] > 0
    assert all(rows[0][name] > 0 for name in ("denoise_s", "video_s"))
    assert table(rows).count("\n") == len(rows) + 1

    source, prompts = quality.Source(str(checkpoint), "cpu"), draw_prompts("unseen", 2)
    defaults = Checkpoint.open(checkpoint).defaults
    default, unguided = (
        [source.make(params_of(defaults, case, prompt, seed), prompt.stated) for seed, prompt in enumerate(prompts)]
        for case in cases(defaults, guidance=[1])
    )
    assert rows[1]["accuracy"] == compare(unguided, default)["accuracy"]


def test_reuse_is_measured_by_its_passes_and_its_distance(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    reuse.main(f"--checkpoint {checkpoint} --device cpu --prompts 2 --all-steps 9 --steps 4 --reuse 0,2 5,0".split())
    head, _, *rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in capsys.readouterr().out.splitlines()]
    assert head == ["case", "passes", "video off", "video off, median", "sound off", "sound off, median"]
    assert [row[:2] for row in rows] == [["4 steps", "8"], ["guidance reuse 2", "15"], ["velocity reuse 5", "16"]]
    assert float(rows[0][2]) > 0 and float(rows[0][4]) > 0


def test_the_plot_names_every_case_of_the_part_that_was_not_refused(tmp_path: Path) -> None:
    quality_plot = pytest.importorskip("benchmarks.quality_plot", reason="needs matplotlib", exc_type=ImportError)
    known = {"part": "unseen", "group": "steps", "denoise_s": 0.5, "mean": 0.9, "latent_error": 0.1}
    rows = [
        known | {"case": "default", "group": "default"},
        known | {"case": "4 steps"},
        known | {"case": "elsewhere", "part": "held_out"},
        {"part": "unseen", "group": "fp8", "case": "fp8 linears", "refused": "no"},
    ]
    results = {"model": "m", "device": "cpu", "prompts": 2, "rows": rows}
    panels = quality_plot.draw(results, "unseen").axes
    assert [sorted(text.get_text() for text in panel.texts) for panel in panels] == [["4 steps", "default"]] * 2
    (tmp_path / "q.json").write_text(json.dumps(results))
    files = [tmp_path / f"{name}.svg" for name in ("first", "second")]
    for file in files:
        quality_plot.main([str(tmp_path / "q.json"), "--out", str(file)])
    assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.parametrize("ending", ["webp", "png"])
def test_the_strip_shows_frames_of_every_prompt(ending: str, checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / f"strip.{ending}"
    strip.main(f"--checkpoint {checkpoint} --device cpu --frames 3 --side 32 --out {out}".split())
    with av.open(out) as picture:
        frame = next(picture.decode(video=0))
    assert (frame.width, frame.height) == (2 * 3 * 32 + strip.GAP, 4 * 32 + 3 * strip.GAP)
    assert out.stat().st_size < 400_000


def test_the_strip_of_pictures_shows_an_image_and_two_videos_a_row(checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "pictures.png"
    strip.main(f"--checkpoint {checkpoint} --device cpu --of pictures --frames 2 --side 32 --out {out}".split())
    with av.open(out) as picture:
        frame = next(picture.decode(video=0))
    assert (frame.width, frame.height) == ((1 + 2 + 2) * 32 + 2 * strip.GAP, 3 * 32 + 2 * strip.GAP)
    for image, video in strip.PICTURES:
        (still,), (moving,) = read_caption(image), read_caption(video)
        assert still == {name: moving[name] for name in ("kind", "colour", "size")}, "the picture is of the same thing"


def test_the_strip_of_previews_shows_three_before_each_video(checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "strip.png"
    strip.main(f"--checkpoint {checkpoint} --device cpu --of previews --frames 2 --side 32 --out {out}".split())
    with av.open(out) as picture:
        frame = next(picture.decode(video=0))
    assert (frame.width, frame.height) == (4 * 2 * 32 + 3 * strip.GAP, 3 * 32 + 2 * strip.GAP)


def test_the_strips_prompts_are_of_the_world() -> None:
    stated = [shape for prompt in strip.PROMPTS for shape in read_caption(prompt)]
    assert all(len(shape) == 6 for shape in stated), "every attribute is said"
    assert {shape["kind"] for shape in stated} == set(KINDS)
    assert {shape["motion"] for shape in stated} == {motion for motion, _ in MOTIONS}


def test_an_export_too_large_to_ship_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "LARGEST_BYTES", 10_000)
    recipe = small_demo.recipe()
    tokenizer.write(recipe, tmp_path, tokenizer.build(recipe, captions=10))
    parts = export.Parts(transformer.build(recipe), video_vae.build(recipe), sound_autoencoder.build(recipe))
    with pytest.raises(ValueError, match="expected at most 10000"):
        export.export(recipe, parts, tmp_path, tmp_path / "checkpoint")
