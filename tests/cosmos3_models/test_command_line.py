"""The command line: one video in a process of its own, mistakes in this one."""

import subprocess
import sys
from pathlib import Path

import av
import pytest

from cosmos3_models import Cosmos3Pipeline, GenerationParams, InvalidInput
from cosmos3_models.__main__ import main
from cosmos3_models.media.mp4 import encode_video
from cosmos3_models.media.output_file import check_output_file

REQUEST = {"num_frames": 5, "height": 32, "width": 48, "num_inference_steps": 2, "seed": 7}


def status(*arguments: str) -> int | str | None:
    """The exit status of a command line that is run in this process."""
    try:
        return main(list(arguments))
    except SystemExit as end:  # argparse's
        return end.code


def test_a_video_with_sound_is_written_with_a_progress_bar_and_a_timing_table(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    out = tmp_path / "x.mp4"
    options = [f"--{name.replace('_', '-')}={value}" for name, value in REQUEST.items()]
    command = [sys.executable, "-m", "cosmos3_models", "--checkpoint", str(tiny_checkpoint), "--prompt", "a ball"]
    command += ["--sound", "--out", str(out), *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
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
        (("--prompt", "x", "--num-frames", "10"), "error: num_frames: got 10, expected 4k + 1 frames"),
        (("--prompt", "x", "--checkpoint", "nowhere"), f"error: {Path.cwd() / 'nowhere'}: no such folder"),
        (("--prompt", "x", "--seed", "many"), "argument --seed: invalid int value: 'many'"),
        (("--prompt", ""), "error: prompt: got '', expected some text"),
    ],
)
def test_a_mistake_is_one_line_on_stderr(
    arguments: tuple[str, ...], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert status(*arguments, "--out", str(tmp_path / "x.mp4")) == 2
    assert told in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_no_folder_is_created_for_the_video(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert status("--checkpoint", "nowhere", "--prompt", "x", "-o", "mistyped/x.mp4") == 2
    told = "--out: got 'mistyped/x.mp4', expected a file in a folder that exists, because there is no folder mistyped"
    assert capsys.readouterr().err == f"error: {told}\n"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("name", "why"), [(".", "this is a folder"), ("one.mp4/x.mp4", "there is no folder")])
def test_what_is_no_file_in_a_folder_is_refused(name: str, why: str, tmp_path: Path) -> None:
    (tmp_path / "one.mp4").touch()
    check_output_file(tmp_path / "one.mp4")  # a video of an earlier run is replaced
    with pytest.raises(InvalidInput, match=why):
        check_output_file(tmp_path / name)
