"""What the ingress checks by itself: names, what may be given up, and whose defaults hold."""

import asyncio
import inspect
import json
import pickle
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from local_api import LocalIngress
from ray.serve.exceptions import RayServeException

from cosmos3_models.checkpoint.folder import DEMO, Checkpoint
from cosmos3_models.resources.budget import GIB, Budget
from serve.app import AppArgs
from serve.errors import InvalidRequest
from serve.graph.graph import Stages
from serve.http.routes import create_api
from serve.ingress import ingress as ingress_module
from serve.ingress.ingress import Ingress, ServedModel

HANDLE: Any = SimpleNamespace(options=lambda **_: None)
REQUEST = {"prompt": "x", "size": "32x32", "num_frames": 5}


def ingress(checkpoint: Path, data: Path, device: str = "cuda", **fields: Any) -> Ingress:
    args = AppArgs(checkpoint=str(checkpoint), data_dir=str(data), **fields)
    model = ServedModel(args.checkpoint, args.model_names(), device, args.approximation, args.max_pixel_frames)
    return Ingress(Stages(HANDLE, HANDLE, HANDLE, HANDLE), HANDLE, model, args.job_settings(), args.media())


@pytest.fixture
def fast(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """A checkpoint that gives something up by default."""
    folder = Path(shutil.copytree(tiny_checkpoint, tmp_path / "夜 ночь"))
    (folder / "generation_config.json").write_text(json.dumps({"fp8_linears": True, "step_cache": 0.05}))
    return folder


def test_a_checkpoints_own_defaults_hold_where_deploy_yaml_says_nothing(fast: Path, tmp_path: Path) -> None:
    params = ingress(fast, tmp_path)._params(REQUEST)
    assert (params.fp8_linears, params.fp8_attention, params.step_cache) == (True, False, 0.05)
    exact = ingress(fast, tmp_path, approximation={"step_cache": 0})._params(REQUEST)
    assert (exact.fp8_linears, exact.step_cache) == (True, 0)
    assert ingress(fast, tmp_path)._params(REQUEST | {"step_cache": 0.2}).step_cache == 0.2


def test_what_the_operator_forbids_is_off_by_default_and_refused_when_asked_for(fast: Path, tmp_path: Path) -> None:
    strict = ingress(fast, tmp_path, approximation={"allowed": ["step_cache"]})
    assert not strict._params(REQUEST).fp8_linears
    with pytest.raises(InvalidRequest) as refused:
        strict._params(REQUEST | {"fp8_linears": True})
    assert refused.value.status == 400
    assert str(refused.value) == (
        "fp8_linears: got True, expected false, because this server's operator does not allow it"
    )
    assert strict.model_cards()[0]["allowed_approximations"] == ["step_cache"]


def test_every_name_is_listed_and_taken_and_no_other(fast: Path, tmp_path: Path) -> None:
    served = ingress(fast, tmp_path, served_model_name=["nvidia/Cosmos3-Nano", "nano"])
    assert [card["id"] for card in served.model_cards()] == ["nvidia/Cosmos3-Nano", "nano"]
    for name in (None, "nvidia/Cosmos3-Nano", "nano"):
        served._params(REQUEST if name is None else REQUEST | {"model": name})
    with pytest.raises(InvalidRequest, match="got '夜 ночь', expected 'nvidia/Cosmos3-Nano' or 'nano' or no model"):
        served._params(REQUEST | {"model": fast.name})


def test_the_folders_own_name_is_served_whatever_its_letters(fast: Path, tmp_path: Path) -> None:
    assert [card["id"] for card in ingress(fast, tmp_path).model_cards()] == ["夜 ночь"]
    ingress(fast, tmp_path)._params(REQUEST | {"model": "夜 ночь"})


def small_card(checkpoint: Path) -> Budget:
    """Of 1 GiB, with room for 64 x 64 x 9 and not for 1024 x 1024 x 97."""
    opened = Checkpoint.open(checkpoint)
    weights = {"weights": GIB // 2, "fp8_weights": 0, "decoder_weights": GIB // 4, "decode_bytes": (1 << 15, 1 << 16)}
    return Budget(
        card_bytes=GIB, itemsize=2, decoders="same GPU", transformer=opened.transformer, sound=None, **weights
    )


def checked(served: Ingress, budget: Callable[[], Awaitable[Budget | None]], request: dict[str, Any]) -> None:
    served._graph.budget = budget  # type: ignore[method-assign]
    asyncio.run(served._fitting_params(request))


def test_what_no_card_of_the_denoisers_can_hold_is_refused_before_it_is_stored(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    async def budget() -> Budget:
        return small_card(tiny_checkpoint)

    checked(ingress(tiny_checkpoint, tmp_path), budget, {"prompt": "x", "size": "64x64", "num_frames": 9})
    with pytest.raises(InvalidRequest) as refused:
        checked(ingress(tiny_checkpoint, tmp_path), budget, {"prompt": "x", "size": "1024x1024", "num_frames": 97})
    assert (refused.value.status, refused.value.param) == (400, "size")
    assert str(refused.value).startswith(
        "size: got '1024x1024 x 97 frames', expected smaller pictures or fewer of them"
    )
    assert str(refused.value).endswith("GiB, and the GPU has 1.0 GiB")


def test_a_denoiser_that_does_not_answer_leaves_the_check_to_itself(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ingress_module, "BUDGET_WAIT_S", 0.01)
    large = {"prompt": "x", "size": "1024x1024", "num_frames": 97}

    async def busy() -> Budget:
        await asyncio.sleep(3600)
        raise AssertionError

    async def away() -> Budget:
        raise RuntimeError("no replica")

    for budget in (busy, away):
        checked(ingress(tiny_checkpoint, tmp_path), budget, large)


def called(folder: Path, scenario: Callable[[LocalIngress], Awaitable[list[Any]]]) -> list[Any]:
    """What the scenario gets from an ingress in this process."""
    service = LocalIngress(AppArgs(checkpoint=DEMO, data_dir=str(folder)))

    async def scene() -> list[Any]:
        try:
            return await scenario(service)
        finally:
            await service.videos.table.close()

    return asyncio.run(scene())


READER = """
import pickle, sys
sys.modules |= dict.fromkeys(("serve", "cosmos3_models"))  # as where they are not installed
for error in pickle.load(sys.stdin.buffer):
    fields = (error.status, error.type, error.code, error.param, error.retry_after_s)
    print(type(error).__name__, *fields, error.message == str(error))
"""


def test_errors_of_handle_calls_are_read_where_this_package_is_not_installed(tmp_path: Path) -> None:
    async def errors(service: LocalIngress) -> list[Any]:
        service.videos.cancel = None  # type: ignore[method-assign, assignment]  # an error that nobody foresaw
        return [
            await error_of(service.retrieve("video_0")),
            await error_of(service.submit({"prompt": "x", "seed": -1})),
            await error_of(service.list(limit=0)),
            await error_of(service.generate({})),
            await error_of(anext(service.stream({"prompt": "x", "steps": 3}))),
            await error_of(service.cancel("video_0")),
        ]

    reader = [sys.executable, "-c", READER]
    pickled = pickle.dumps(called(tmp_path, errors))
    done = subprocess.run(reader, input=pickled, capture_output=True, timeout=60, cwd="/")
    assert done.stdout.decode().splitlines() == [
        "RayServeException 404 invalid_request_error not_found video_id None True",
        "RayServeException 400 invalid_request_error invalid_value seed None True",
        "RayServeException 400 invalid_request_error invalid_value limit None True",
        "RayServeException 400 invalid_request_error invalid_value prompt None True",
        "RayServeException 400 invalid_request_error invalid_value steps None True",
        "RayServeException 500 server_error internal_error None None True",
    ], done.stderr.decode()


async def error_of(call: Awaitable[object]) -> Exception:
    with pytest.raises(RayServeException) as raised:
        await call
    return raised.value


def test_handle_calls_return_nothing_but_plain_values(tmp_path: Path) -> None:
    async def values(service: LocalIngress) -> list[Any]:
        video = await service.submit(REQUEST | {"metadata": {"a": "b"}})
        listed = [await service.list(metadata={"a": "b"}), await service.list(status="failed")]
        made = await service.generate(REQUEST)
        return [video, *listed, await service.retrieve(video["id"]), await service.delete(video["id"]), made["record"]]

    got = called(tmp_path, values)
    assert json.loads(json.dumps(got)) == got


def test_a_burst_of_a_hundred_submissions_shares_its_handle_calls_and_transactions(tmp_path: Path) -> None:
    counts: Counter[str] = Counter()

    def counted(name: str, call: Callable[..., Any], delay_s: float = 0.0) -> Callable[..., Any]:
        async def wrapped(*args: Any) -> Any:
            counts[name] += 1
            await asyncio.sleep(delay_s)  # of a call of another process
            result = call(*args)
            return await result if inspect.isawaitable(result) else result

        return wrapped

    async def burst(service: LocalIngress) -> list[str]:
        graph: Any = service._graph
        database: Any = service.videos.table._database
        remote = graph._stages.tokenizer.encode_all.remote
        tokenizer: Any = SimpleNamespace(encode_all=SimpleNamespace(remote=counted("tokenizer", remote, 0.01)))
        graph._stages = graph._stages._replace(tokenizer=tokenizer)
        for method in ("read", "write", "write_alone"):
            setattr(database, method, counted(method, getattr(database, method)))
        transport = httpx.ASGITransport(create_api(service))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            answers = await asyncio.gather(*(client.post("/v1/videos", json=REQUEST) for _ in range(100)))
        assert {answer.status_code for answer in answers} == {200}
        return [answer.json()["id"] for answer in answers]

    assert len(set(called(tmp_path, burst))) == 100
    assert counts["tokenizer"] <= 5
    assert counts["write"] + counts["write_alone"] <= 5
    assert counts["read"] <= 10, "the estimates in the answers"
