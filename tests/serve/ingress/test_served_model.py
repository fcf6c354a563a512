"""Which requests the served model accepts, whose defaults hold, and what its card says."""

import asyncio
import json
import shutil
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from cosmos3_models import GenerationParams
from cosmos3_models.checkpoint.folder import Checkpoint
from cosmos3_models.resources.budget import GIB, Budget
from serve.app import AppArgs
from serve.errors import InvalidRequest
from serve.ingress import served_model
from serve.ingress.served_model import ServedModel
from serve.schema import read_request

REQUEST = {"prompt": "x", "size": "32x32", "num_frames": 5}
LARGE = {"prompt": "x", "size": "1024x1024", "num_frames": 97}

AskBudget = Callable[[], Coroutine[Any, Any, Budget | None]]


async def no_gpu() -> None:
    return None


def served(checkpoint: Path, ask_budget: AskBudget = no_gpu, **fields: Any) -> ServedModel:
    args = AppArgs(checkpoint=str(checkpoint), **fields)
    return ServedModel(args.model_settings("cuda"), ask_budget)


def params(model: ServedModel, request: dict[str, Any]) -> GenerationParams:
    """What a model, which is bound to one event loop, makes of one request."""
    return asyncio.run(model.params(read_request(request)))


@pytest.fixture
def fast(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """A checkpoint that gives something up by default."""
    folder = Path(shutil.copytree(tiny_checkpoint, tmp_path / "夜 ночь"))
    (folder / "generation_config.json").write_text(
        json.dumps({"fp8_linears": True, "profile": "fast", "velocity_reuse": 3})
    )
    return folder


def test_a_checkpoints_own_defaults_hold_where_deploy_yaml_says_nothing(fast: Path) -> None:
    own = params(served(fast), REQUEST)
    assert (own.fp8_linears, own.fp8_attention, own.velocity_reuse, own.guidance_reuse) == (True, False, 3, 0)
    nearer = params(served(fast, approximation={"velocity_reuse": 0}), REQUEST)
    assert (nearer.fp8_linears, nearer.velocity_reuse, nearer.guidance_reuse) == (True, 0, 0)
    assert params(served(fast), REQUEST | {"velocity_reuse": 2}).velocity_reuse == 2


def test_a_profile_sets_its_fields_wherever_it_is_named_and_fields_beside_it_win(fast: Path) -> None:
    def reuse(request: dict[str, Any], **approximation: Any) -> tuple[bool, int, int]:
        made = params(served(fast, approximation=approximation), REQUEST | request)
        return made.fp8_linears, made.velocity_reuse, made.guidance_reuse

    assert reuse({"profile": "fast"}) == (True, 5, 0), "over what the checkpoint says; it says nothing of fp8"
    assert reuse({"profile": "exact"}) == (False, 0, 0)
    assert reuse({"profile": "exact", "velocity_reuse": 2}) == (False, 2, 0)
    assert reuse({"profile": "fast", "guidance_reuse": 2}) == (True, 5, 2)
    assert reuse({}, profile="exact") == (False, 0, 0)
    assert reuse({}, profile="exact", guidance_reuse=3) == (False, 0, 3)
    assert reuse({"profile": "fast"}, profile="exact") == (False, 5, 0)
    assert reuse({}, allowed=["velocity_reuse"]) == (False, 3, 0)
    with pytest.raises(InvalidRequest, match="velocity_reuse: got 5, expected 0, because this server's operator"):
        reuse({"profile": "fast"}, allowed=["guidance_reuse"])


def test_what_the_operator_forbids_is_off_by_default_and_refused_when_asked_for(fast: Path) -> None:
    def strict() -> ServedModel:
        return served(fast, approximation={"allowed": ["velocity_reuse"]})

    assert not params(strict(), REQUEST).fp8_linears
    with pytest.raises(InvalidRequest) as refused:
        params(strict(), REQUEST | {"fp8_linears": True})
    assert refused.value.status == 400
    assert str(refused.value) == (
        "fp8_linears: got True, expected false, because this server's operator does not allow it"
    )
    assert strict().cards()[0]["allowed_approximations"] == ["velocity_reuse"]


def test_every_name_is_listed_and_taken_and_no_other(fast: Path) -> None:
    def model() -> ServedModel:
        return served(fast, served_model_name=["nvidia/Cosmos3-Nano", "nano"])

    assert [card["id"] for card in model().cards()] == ["nvidia/Cosmos3-Nano", "nano"]
    for name in (None, "nvidia/Cosmos3-Nano", "nano"):
        params(model(), REQUEST if name is None else REQUEST | {"model": name})
    with pytest.raises(InvalidRequest, match="got '夜 ночь', expected 'nvidia/Cosmos3-Nano' or 'nano' or no model"):
        params(model(), REQUEST | {"model": fast.name})


def test_the_folders_own_name_is_served_whatever_its_letters(fast: Path) -> None:
    assert [card["id"] for card in served(fast).cards()] == ["夜 ночь"]
    params(served(fast), REQUEST | {"model": "夜 ночь"})


def small_card(checkpoint: Path) -> Budget:
    """Of 1 GiB, with room for 64 x 64 x 9 and not for 1024 x 1024 x 97."""
    opened = Checkpoint.open(checkpoint)
    weights = {
        "weights": GIB // 2,
        "fp8_weights": 0,
        "autoencoder_weights": GIB // 4,
        "decode_bytes": (1 << 15, 1 << 16),
    }
    return Budget(
        card_bytes=GIB, itemsize=2, decoders="same GPU", transformer=opened.transformer, sound=None, **weights
    )


def test_what_no_card_of_the_denoisers_can_hold_is_refused_before_it_is_stored(tiny_checkpoint: Path) -> None:
    async def budget() -> Budget:
        return small_card(tiny_checkpoint)

    assert params(served(tiny_checkpoint, budget), {"prompt": "x", "size": "64x64", "num_frames": 9}).num_frames == 9
    with pytest.raises(InvalidRequest) as refused:
        params(served(tiny_checkpoint, budget), LARGE)
    assert (refused.value.status, refused.value.param) == (400, "size")
    assert str(refused.value).startswith(
        "size: got '1024x1024 x 97 frames', expected smaller pictures or fewer of them"
    )
    assert str(refused.value).endswith("GiB, and the GPU has 1.0 GiB")


def test_a_denoiser_that_does_not_answer_leaves_the_check_to_itself(
    tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(served_model, "BUDGET_WAIT_S", 0.01)

    async def busy() -> Budget:
        await asyncio.sleep(3600)
        raise AssertionError

    async def absent() -> Budget:
        raise RuntimeError("no replica")

    for budget in (busy, absent):
        assert params(served(tiny_checkpoint, budget), LARGE).num_frames == 97


def test_one_frame_is_an_image_and_cannot_sound(tiny_checkpoint: Path) -> None:
    one = REQUEST | {"num_frames": 1}
    assert params(served(tiny_checkpoint), one).num_frames == 1
    with pytest.raises(InvalidRequest, match="generate_sound: got True, expected false, because a video of one frame"):
        params(served(tiny_checkpoint), one | {"generate_sound": True})


def test_an_invalid_request_is_refused_before_a_denoiser_is_asked(tiny_checkpoint: Path) -> None:
    questions = []

    async def budget() -> None:
        questions.append(1)

    model = served(tiny_checkpoint, budget, max_pixel_frames=100)
    with pytest.raises(InvalidRequest, match="expected at most 100 pixels over all frames"):
        params(model, REQUEST)
    assert not questions


@pytest.mark.parametrize("there", [True, False])
def test_the_card_says_whether_a_video_can_start_from_a_picture(
    tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, there: bool
) -> None:
    monkeypatch.setattr(Checkpoint, "has_video_encoder", there)
    assert served(tiny_checkpoint).cards()[0]["pictures"] is there


def test_the_cost_of_a_video_counts_the_gpus_of_a_denoiser(tiny_checkpoint: Path) -> None:
    asked = GenerationParams(prompt="x", height=1024, width=1024, num_frames=97)
    alone, two = (served(tiny_checkpoint, gpus_per_denoiser=gpus).cost(asked, (9, 9)) for gpus in (1, 2))
    assert two.step == pytest.approx(0.515 * alone.step, rel=1e-6)
