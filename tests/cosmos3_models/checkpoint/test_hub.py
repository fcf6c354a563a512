"""A checkpoint by its name on the Hugging Face Hub, of which a server on this machine plays the part."""

import errno
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from fake_hub import COMMIT, REPOSITORY, FakeHub, fake_hub, use_hub
from huggingface_hub import constants
from sparse_nano import write_sparse_nano

from cosmos3_models import CheckpointError
from cosmos3_models.checkpoint import hub as hub_files
from cosmos3_models.checkpoint.folder import (
    DEMO_FOLDER,
    Checkpoint,
    checkpoint_folder,
    checkpoint_name,
    pinned_checkpoint,
)
from cosmos3_models.checkpoint.hub import HubName
from cosmos3_models.checkpoint.inspection import checkpoint_problems, contents, headers_of

TRANSFORMER = "transformer/diffusion_pytorch_model.safetensors"


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def hub(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A hub with the demo and files that are not served."""
    folder = Path(shutil.copytree(DEMO_FOLDER, tmp_path / "hub"))
    for name in ("transformer/model.bin", "vision_encoder/model.safetensors", "assets/demo.mp4"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"x" * 99)
    with fake_hub(folder) as running:
        use_hub(monkeypatch, running.url, cache)
        yield running


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("nvidia/Cosmos3-Nano", (REPOSITORY, None)),
        ("nvidia/Cosmos3-Nano@main", (REPOSITORY, "main")),
        ("nvidia/Cosmos3-Nano@refs/pr/1", (REPOSITORY, "refs/pr/1")),
        ("demo", None),
        ("/models/Cosmos3-Nano", None),
        ("~/Cosmos3-Nano", None),
        ("./models/Nano", None),
        ("../Nano", None),
        ("a/b/c", None),
        ("models/", None),
        ("models/Nano@", None),
        ("s3://bucket/x", None),
    ],
)
def test_a_name_has_one_slash_and_perhaps_a_revision(text: str, name: tuple[str, str | None] | None) -> None:
    assert HubName.parse(text) == name
    assert name is None or str(HubName(*name)) == text


def test_a_folder_of_that_name_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / REPOSITORY).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert checkpoint_folder(REPOSITORY) == tmp_path / REPOSITORY
    assert checkpoint_name(REPOSITORY) == "Cosmos3-Nano"
    assert pinned_checkpoint(REPOSITORY) == REPOSITORY


def test_only_the_files_that_are_served_are_downloaded_once(hub: FakeHub) -> None:
    checkpoint = Checkpoint.open(REPOSITORY)
    assert checkpoint.name == checkpoint_name(REPOSITORY) == REPOSITORY
    assert checkpoint_problems(checkpoint.folder) == []
    demo = {str(file.relative_to(DEMO_FOLDER)) for file in DEMO_FOLDER.rglob("*") if file.is_file()}
    assert set(hub.read) == demo - {"README.md", "model_index.json"}
    hub.requests.clear()
    assert Checkpoint.open(f"{REPOSITORY}@main") == Checkpoint.open(f"{REPOSITORY}@{COMMIT}") == checkpoint
    assert hub.requests == [], "the cache needs no network"


def test_a_stage_without_the_transformer_leaves_its_weights_out(hub: FakeHub) -> None:
    light = Checkpoint.open(REPOSITORY, transformer=False)
    assert light.has_video_encoder and not (light.folder / TRANSFORMER).exists()
    hub.requests.clear()
    assert Checkpoint.open(REPOSITORY, transformer=False) == light and hub.requests == []
    assert Checkpoint.open(REPOSITORY).folder == light.folder and (light.folder / TRANSFORMER).exists()
    assert hub.read[TRANSFORMER] == (DEMO_FOLDER / TRANSFORMER).stat().st_size


def test_every_node_serves_the_commit_that_the_first_one_found(hub: FakeHub) -> None:
    for name in (REPOSITORY, f"{REPOSITORY}@main", f"{REPOSITORY}@{COMMIT}"):
        assert pinned_checkpoint(name) == f"{REPOSITORY}@{COMMIT}"
    assert [pinned_checkpoint(path) for path in ("demo", "/models/x")] == ["demo", "/models/x"]
    Checkpoint.open(REPOSITORY, transformer=False)
    hub.requests.clear()
    assert pinned_checkpoint(REPOSITORY) == f"{REPOSITORY}@{COMMIT}" and hub.requests == []


def test_a_cached_checkpoint_is_served_offline(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Checkpoint.open(REPOSITORY).folder
    hub.refusal = 503, "down"
    assert Checkpoint.open(REPOSITORY).folder == folder
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert Checkpoint.open(REPOSITORY).folder == folder


@pytest.mark.usefixtures("hub")
def test_an_unfinished_download_goes_on() -> None:
    folder = Checkpoint.open(REPOSITORY).folder
    (folder / TRANSFORMER).unlink()
    assert (Checkpoint.open(REPOSITORY).folder / TRANSFORMER).exists()


def test_a_cache_without_a_listing_is_completed_or_serves_as_it_is(
    hub: FakeHub, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Checkpoint.open(REPOSITORY)
    copy = Path(
        shutil.copytree(cache, tmp_path / "copy", symlinks=True)
    )  # the library remembers listings by their path
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(copy))
    (model,) = copy.glob("models--*")
    shutil.rmtree(model / "trees")
    folder = model / "snapshots" / COMMIT
    hub.refusal = 503, "down"
    at_once = SimpleNamespace(**{**vars(time), "sleep": lambda _: None})
    monkeypatch.setattr("huggingface_hub.utils._http.time", at_once)  # between its attempts it would wait 23 s
    assert Checkpoint.open(REPOSITORY).folder == folder
    assert pinned_checkpoint(REPOSITORY) == f"{REPOSITORY}@{COMMIT}"
    with headers_of(REPOSITORY) as read:
        assert read == folder
    (folder / TRANSFORMER).unlink()
    hub.refusal = None
    assert (Checkpoint.open(REPOSITORY).folder / TRANSFORMER).exists()


@pytest.mark.parametrize(
    ("refusal", "told"),
    [
        ((401, "GatedRepo"), "accept the licence at {url}/nvidia/Cosmos3-Nano, and set HF_TOKEN on every node to a"),
        ((403, "GatedRepo"), "accept the licence at {url}/nvidia/Cosmos3-Nano, and set HF_TOKEN on every node to a"),
        ((401, "RepoNotFound"), "{url} has no such model, or it is private and needs a token in HF_TOKEN on every"),
        ((404, "RepoNotFound"), "{url} has no such model, or it is private and needs a token in HF_TOKEN on every"),
        ((404, "RevisionNotFound"), "{url} has the model, but no revision v9"),
        ((503, "down"), "{url} refused the download with HTTP status 503"),
    ],
)
def test_a_refusal_is_one_sentence(hub: FakeHub, refusal: tuple[int, str], told: str) -> None:
    hub.refusal = refusal
    name = f"{REPOSITORY}@v9"
    for call in (Checkpoint.open, pinned_checkpoint):
        with pytest.raises(CheckpointError) as raised:
            call(name)
        assert str(raised.value).startswith(f"{name}: {told.format(url=hub.url)}")
        assert "\n" not in str(raised.value)


def test_a_licence_that_is_not_accepted_is_told_by_the_first_file(hub: FakeHub) -> None:
    hub.gated = True
    with pytest.raises(CheckpointError, match="accept the licence at"):
        Checkpoint.open(REPOSITORY)
    with pytest.raises(CheckpointError, match="accept the licence at"), headers_of(REPOSITORY):
        pass


@pytest.mark.usefixtures("hub")
def test_offline_without_a_cache_is_told(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointError, match=f"the files are not in {cache}, and HF_HUB_OFFLINE forbids a download"):
        Checkpoint.open(REPOSITORY)


def test_a_network_that_is_down_is_told(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    use_hub(monkeypatch, "http://127.0.0.1:9", cache)
    told = rf"not in {cache}, and http://127\.0\.0\.1:9 cannot be reached \("
    with pytest.raises(CheckpointError, match=told):
        Checkpoint.open(REPOSITORY)


def test_a_disk_without_room_is_told_before_the_download(
    hub: FakeHub, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_files.shutil, "disk_usage", lambda _: SimpleNamespace(free=10**6))
    with pytest.raises(CheckpointError, match=rf"takes 0\.0 GB, but the disk of {cache} has 0\.0 GB free; HF_HOME"):
        Checkpoint.open(REPOSITORY)
    assert hub.read == {}


@pytest.mark.usefixtures("hub")
def test_a_disk_that_fills_up_is_told(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fill(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "x")

    monkeypatch.setattr("huggingface_hub.file_download.http_get", fill)
    with pytest.raises(CheckpointError, match=f"the disk of {cache} is full; HF_HOME names another place"):
        Checkpoint.open(REPOSITORY)


@pytest.mark.usefixtures("hub")
def test_a_cache_that_cannot_be_written_is_told(cache: Path) -> None:
    cache.write_text("no folder")
    with pytest.raises(CheckpointError, match=f"{cache}.* cannot be used"):
        Checkpoint.open(REPOSITORY)


def test_headers_are_read_from_the_hub_without_the_weights(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_sparse_nano(tmp_path / "nano")
    (folder / "README.md").write_text("x")
    with fake_hub(folder) as hub:
        use_hub(monkeypatch, hub.url, cache)
        with headers_of(REPOSITORY) as read:
            assert checkpoint_problems(read) == []
            assert contents(Checkpoint.open(read)) == contents(Checkpoint.open(folder))
        assert not read.exists()
        assert sum(hub.read.values()) < 2e6


def test_a_file_that_the_hub_lacks_is_told(hub: FakeHub) -> None:
    (hub.folder / "vae/config.json").unlink()
    with headers_of(REPOSITORY) as read:
        assert [str(error) for error in checkpoint_problems(read)] == [f"{read}/vae/config.json: the file is missing"]


def test_a_cached_checkpoint_is_checked_where_it_is(hub: FakeHub) -> None:
    folder = Checkpoint.open(REPOSITORY).folder
    hub.requests.clear()
    with headers_of(REPOSITORY) as read:
        assert read == folder
    assert hub.requests == []
