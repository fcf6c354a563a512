"""``cosmos3 check``: what its argument is, what is said of a good checkpoint, and of a bad one."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from fake_hub import REPOSITORY, fake_hub, use_hub
from paths import ROOT
from safetensors.torch import load_file, save_file
from sparse_nano import write_sparse_nano

from cosmos3_models.checkpoint.folder import DEMO_FOLDER
from cosmos3_models.resources.cards import CARDS
from serve.cli.check import command

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def nano(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sparse_nano(tmp_path_factory.mktemp("models") / "Cosmos3-Nano")


def check(*arguments: object) -> Result:
    return CliRunner().invoke(command, [str(argument) for argument in arguments])


def row(output: str, start: str) -> list[str]:
    """The columns of the lines that begin with a word."""
    return [cell for line in output.splitlines() if line.split()[:1] == [start] for cell in re.split(r"  +", line)[2:]]


def test_the_demo_is_checked_and_described() -> None:
    done = check("demo")
    assert done.exit_code == 0 and done.stderr == ""
    assert done.stdout.startswith("cosmos3-demo: configs, text tokenizer and all tensors are as they should be\n")
    assert "192x192, 33 frames, 12 fps, 16 steps" in done.stdout
    assert row(done.stdout, "sound") == ["yes"] and row(done.stdout, "h100-80gb")[-1] == "under 1"
    assert all(card in done.stdout for card in CARDS)


def test_a_folder_of_nanos_size_is_described_with_memory_and_time(nano: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(nano.parent)
    done = check(nano.name)
    assert (done.exit_code, done.stderr) == (0, "")
    assert row(done.stdout, "transformer") == ["30.35 GB", "814 BF16 tensors"]
    h100, a100, gamers = (row(done.stdout, name) for name in ("h100-80gb", "a100-40gb", "rtx-4090-24gb"))
    assert h100[:3] == ["79.1 GiB", "73.0 GiB", "42.8 GiB"]
    assert a100[1:3] == ["43.4 GiB: too small", "36.4 GiB"], "no fp8 there"
    assert gamers[2] == "22.6 GiB, 13.7 in host"
    # What docs/figures.md has: 189.6 s of denoise and 5.4 s of decode; benchmarks/README.md: 9.9 s and at least 0.6 s.
    assert float(h100[3]) == pytest.approx(195, rel=0.05)
    assert float(h100[6]) == pytest.approx(10.5, rel=0.2)
    assert float(a100[3]) == pytest.approx(float(h100[3]) * 989 / 312, rel=0.01)


def test_the_documents_show_what_is_printed(nano: Path) -> None:
    shown = (ROOT / "docs/weights.md").read_text()
    shown = shown[shown.index("\nCosmos3-Nano: ") + 1 :].partition("\n```")[0]
    printed = check(nano).stdout
    assert all(f"{line}\n" in printed for line in shown.splitlines())


def test_one_card_is_described_by_stage(nano: Path) -> None:
    done = check(nano, "--gpu=h100-80gb")
    lines = {line.split()[0]: re.findall(r"([\d.]+) GiB", line) for line in done.stdout.splitlines()}
    stages = ("Denoiser", "VideoEncoder", "VideoDecoder", "SoundDecoder", "processes")
    assert sum(float(gib) for stage in stages for gib in lines[stage]) == pytest.approx(73.0, abs=0.5)
    assert lines["13.7"] and "page-locked" in done.stdout
    assert not any(card in done.stdout for card in CARDS if card != "h100-80gb")


def test_a_broken_checkpoint_is_told_line_by_line(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(DEMO_FOLDER, tmp_path / "demo"))
    (folder / "vae" / WEIGHTS).unlink()
    (folder / "text_tokenizer" / "tokenizer.json").unlink()
    done = check(folder)
    assert done.exit_code == 1 and done.stdout == ""
    assert done.stderr.splitlines() == [
        f"{folder}/text_tokenizer/tokenizer.json: the file is missing",
        f"{folder}/vae: no safetensors file in this folder",
    ]


def test_a_checkpoint_without_sound_and_pictures_says_so(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(DEMO_FOLDER, tmp_path / "demo"))
    tensors = load_file(folder / "vae" / WEIGHTS)
    kept = {name: tensor for name, tensor in tensors.items() if not name.startswith(("encoder.", "quant_conv."))}
    save_file(kept, folder / "vae" / WEIGHTS)
    shutil.rmtree(folder / "sound_tokenizer")
    done = check(folder)
    assert row(done.stdout, "sound") == ["no: there is no sound_tokenizer"]
    assert "from pictures   no: vae has no encoder" in done.stdout


def test_a_deployment_file_is_silent_and_with_a_card_described(tmp_path: Path) -> None:
    deploy = ROOT / "deploy.yaml"
    assert (check(deploy).exit_code, check(deploy).output) == (0, "")
    short = tmp_path / "deploy"
    short.write_text(deploy.read_text().replace("max_pixel_frames: 273715200", "max_pixel_frames: 1843200"))
    assert "(192x192, 49 frames with sound)" in check(short, "--gpu=h100-80gb").stdout


@pytest.mark.parametrize(
    ("arguments", "status", "told"),
    [
        (["nowhere.yaml"], 1, "nowhere.yaml: no such file"),
        (["nowhere"], 1, "/nowhere: no such folder"),
        (["demo", "--gpu=k80"], 2, "'k80' is not one of 'h100-80gb'"),
        (["demo", "--port=1"], 2, "--port changes a deployment file, and demo is none"),
        (["demo", "--checkpoint=demo"], 2, "--checkpoint changes a deployment file, and demo is none"),
    ],
)
def test_an_argument_that_is_nothing_is_told(arguments: list[str], status: int, told: str) -> None:
    done = check(*arguments)
    assert (done.exit_code, done.stdout) == (status, "")
    assert told in done.stderr


def test_a_model_on_the_hub_is_checked_by_its_name(tmp_path: Path) -> None:
    with fake_hub(Path(shutil.copytree(DEMO_FOLDER, tmp_path / "hub"))) as hub:
        environment = os.environ | {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "PYTHONPATH": str(ROOT)}
        arguments = [sys.executable, "-m", "serve", "check", REPOSITORY]
        done = subprocess.run(arguments, env=environment, cwd=tmp_path, capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.startswith(f"{REPOSITORY}: configs, text tokenizer and all tensors are as they should be\n")
        assert sum(hub.read.values()) < 2e6


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda hub: setattr(hub, "gated", True), f"{REPOSITORY}@main: accept the licence at http://127.0.0.1"),
        (lambda hub: (hub.folder / "vae" / WEIGHTS).unlink(), f"{REPOSITORY}@main/vae: no safetensors file in"),
    ],
    ids=["gated", "broken"],
)
def test_a_problem_on_the_hub_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[object], object], told: str
) -> None:
    with fake_hub(Path(shutil.copytree(DEMO_FOLDER, tmp_path / "hub"))) as hub:
        use_hub(monkeypatch, hub.url, tmp_path / "cache")
        change(hub)
        done = check(REPOSITORY)
    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr.startswith(told) and len(done.stderr.splitlines()) == 1
