"""``cosmos3 generate``, called in this process."""

import json
import shutil
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from cosmos3_models import Cosmos3Pipeline, GenerationParams, InvalidInput
from cosmos3_models.media.mp4 import encode_video
from cosmos3_models.media.output_file import check_output_file
from serve.cli.main import main

REQUEST: dict[str, Any] = {"num_frames": 5, "height": 32, "width": 48, "num_inference_steps": 2, "seed": 7}


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["generate", *arguments])


def test_a_video_with_sound_is_written_with_a_progress_bar_and_a_timing_table(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    out = tmp_path / "x.mp4"
    options = [f"--{name.replace('_', '-')}={value}" for name, value in REQUEST.items()]
    done = run("--checkpoint", str(tiny_checkpoint), "a ball", "--sound", "--device=cpu", "--out", str(out), *options)
    assert done.exit_code == 0, done.stderr
    assert "2/2" in done.stderr
    stages = [line.split("  ")[0] for line in done.stdout.splitlines() if line.endswith(" s")]
    assert {"model_load", "preprocess", "inference", "to_cpu", "encode", "per step", "total"} <= set(stages)
    with av.open(out) as video:
        assert [stream.type for stream in video.streams] == ["video", "audio"]
    alone = Cosmos3Pipeline.from_pretrained(tiny_checkpoint, "cpu")(
        GenerationParams(prompt="a ball", generate_sound=True, **REQUEST)
    )
    assert out.read_bytes() == encode_video(alone.frames, alone.waveform, alone.fps, alone.sample_rate)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("x", "--num-frames", "10"), "error: num_frames: got 10, expected 4k + 1 frames"),
        (("x", "--checkpoint", "nowhere"), f"error: {Path.cwd() / 'nowhere'}: no such folder"),
        (("x", "--seed", "many"), "Error: Invalid value for '--seed': 'many' is not a valid integer."),
        (("x", "--size", "big"), "error: size: got 'big', expected text to match pattern"),
        (("",), "error: prompt: got '', expected some text"),
    ],
)
def test_a_mistake_is_one_line_on_stderr(arguments: tuple[str, ...], told: str, tmp_path: Path) -> None:
    done = run(*arguments, "--out", str(tmp_path / "x.mp4"))
    assert done.exit_code == 2
    assert told in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    file = tmp_path / "portrait.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 32, 3), dtype=np.uint8)).save(file)
    return file


def test_a_video_starts_from_a_picture_and_has_its_ratio(tiny_checkpoint: Path, tmp_path: Path, picture: Path) -> None:
    out, fields = tmp_path / "x.mp4", {"num_frames": 5, "num_inference_steps": 1}
    small = Path(shutil.copytree(tiny_checkpoint, tmp_path / "small"))
    (small / "generation_config.json").write_text(json.dumps({"height": 64, "width": 64}))
    options = [f"--{name.replace('_', '-')}={value}" for name, value in fields.items()]
    done = run("--checkpoint", str(small), "a ball", f"--image={picture}", f"--out={out}", *options)
    assert done.exit_code == 0, done.stderr
    with av.open(out) as video:
        stream = video.streams.video[0]
        assert stream.height == pytest.approx(2 * stream.width, rel=0.2)
        size = {"width": stream.width, "height": stream.height}
    pipeline = Cosmos3Pipeline.from_pretrained(small, "cpu")
    alone = pipeline(pipeline.checkpoint.defaults.params(prompt="a ball", **size, **fields), image=picture)
    assert out.read_bytes() == encode_video(alone.frames, None, alone.fps, None)


def test_one_frame_is_written_as_a_picture(tiny_checkpoint: Path, tmp_path: Path) -> None:
    out, fields = tmp_path / "x.png", REQUEST | {"num_frames": 1}
    options = [f"--{name.replace('_', '-')}={value}" for name, value in fields.items()]
    done = run("--checkpoint", str(tiny_checkpoint), "a ball", f"--out={out}", *options)
    assert done.exit_code == 0, done.stderr
    alone = Cosmos3Pipeline.from_pretrained(tiny_checkpoint, "cpu")(GenerationParams(prompt="a ball", **fields))
    assert np.array_equal(np.asarray(Image.open(out)), alone.frames[0])


@pytest.mark.parametrize(("name", "frames", "expected"), [("x.mp4", 1, ".png, .jpg"), ("x.png", 5, ".mp4")])
def test_the_files_name_must_fit_what_is_made(name: str, frames: int, expected: str, tmp_path: Path) -> None:
    done = run("x", f"--num-frames={frames}", "--out", str(tmp_path / name))
    assert done.exit_code == 2
    assert expected in done.stderr
    assert not list(tmp_path.iterdir())


def test_what_is_no_picture_is_refused_before_the_model_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("not a picture")
    done = run("x", "--checkpoint=nowhere", f"--image={tmp_path / 'text.png'}", "--out", str(tmp_path / "x.mp4"))
    assert done.exit_code == 2
    assert done.stderr.startswith("error: input_reference: ")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--num-frames=1", "--sound"], "generate_sound: got True, expected false"),
        (["--num-frames=1", "--image"], "num_frames: got 1, expected at least 5"),
        (["--num-frames=5", "--condition-frame-indexes-vision=0"], "condition_frame_indexes_vision: got [0], expected"),
    ],
)
def test_what_makes_no_sense_is_refused_before_the_model_is_loaded(
    options: list[str],
    told: str,
    tiny_checkpoint: Path,
    tmp_path: Path,
    picture: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Cosmos3Pipeline, "from_pretrained", None)
    options = [f"--image={picture}" if option == "--image" else option for option in options]
    done = run("x", f"--checkpoint={tiny_checkpoint}", "--out", str(tmp_path / "x.mp4"), *options)
    assert done.exit_code == 2
    assert done.stderr.startswith(f"error: {told}"), done.stderr


def test_no_folder_is_created_for_the_video(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # a longer name would be cut in the message
    done = run("--checkpoint", "nowhere", "x", "-o", "mistyped/x.mp4")
    assert done.exit_code == 2
    told = "--out: got 'mistyped/x.mp4', expected a file in a folder that exists, because there is no folder mistyped"
    assert done.stderr == f"error: {told}\n"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("name", "why"), [(".", "this is a folder"), ("one.mp4/x.mp4", "there is no folder")])
def test_what_is_no_file_in_a_folder_is_refused(name: str, why: str, tmp_path: Path) -> None:
    (tmp_path / "one.mp4").touch()
    check_output_file(tmp_path / "one.mp4")  # a video of an earlier run is replaced
    with pytest.raises(InvalidInput, match=why):
        check_output_file(tmp_path / name)
