"""The graph serves a model on the Hugging Face Hub: one commit on every node."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_hub import COMMIT, REPOSITORY, FakeHub, fake_hub, use_hub
from paths import ROOT

from cosmos3_models import CheckpointError
from cosmos3_models.checkpoint.folder import DEMO_FOLDER
from serve.app import AppArgs, build_app
from serve.check import problems

TEXT = (ROOT / "deploy.yaml").read_text().replace("checkpoint: demo ", f"checkpoint: {REPOSITORY} ")
WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    with fake_hub(Path(shutil.copytree(DEMO_FOLDER, tmp_path / "hub"))) as running:
        use_hub(monkeypatch, running.url, tmp_path / "cache")
        yield running


def test_the_name_of_a_model_is_no_folder_in_a_deployment_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / REPOSITORY).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    args = AppArgs(checkpoint=REPOSITORY)
    assert args.checkpoint == f"{REPOSITORY}@main" and args.model_names() == (REPOSITORY,)
    assert AppArgs(checkpoint=f"{REPOSITORY}@v1").checkpoint == f"{REPOSITORY}@v1"


@pytest.mark.usefixtures("hub")
def test_all_stages_get_the_commit() -> None:
    built = build_app(AppArgs(checkpoint=REPOSITORY, device="cpu"))
    ingress = built._bound_deployment
    stages, _, settings, *_ = ingress.init_args
    assert settings.checkpoint == f"{REPOSITORY}@{COMMIT}" and settings.names == (REPOSITORY,)
    for stage in filter(None, stages):  # this server has no prompt upsampler
        assert stage._bound_deployment.init_args[0] == settings.checkpoint


def test_a_hub_that_refuses_is_the_reason_why_nothing_starts(hub: FakeHub) -> None:
    hub.refusal = 401, "GatedRepo"
    with pytest.raises(CheckpointError, match="accept the licence"):
        build_app(AppArgs(checkpoint=REPOSITORY, device="cpu"))
    (line,) = problems(TEXT)
    assert line.startswith(f"{REPOSITORY}@main: accept the licence at {hub.url}")


def test_a_check_reads_the_headers_on_the_hub_and_no_weights(hub: FakeHub) -> None:
    assert problems(TEXT) == []
    whole = sum(file.stat().st_size for file in DEMO_FOLDER.rglob("*.safetensors"))
    assert sum(read for name, read in hub.read.items() if name.endswith(".safetensors")) < whole / 20


def test_a_problem_on_the_hub_names_the_model(hub: FakeHub) -> None:
    (hub.folder / "vae" / WEIGHTS).unlink()
    assert problems(TEXT) == [f"{REPOSITORY}@main/vae: no safetensors file in this folder"]
