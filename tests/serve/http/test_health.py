"""/health answers in bounded time, whatever its parts do, and costs next to nothing."""

import asyncio
import threading
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import own_time
import pytest
from local_api import LocalIngress
from ray import serve
from ray.serve.schema import ApplicationStatusOverview, DeploymentStatusOverview

from cosmos3_models.checkpoint.folder import DEMO
from serve.app import AppArgs
from serve.http import health
from serve.http.health import Look, unready_deployments
from serve.ingress.ingress import Ingress


def test_what_raises_or_hangs_is_named_within_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "LIMIT_S", 0.2)

    async def fine() -> Sequence[str]:
        return ["Denoiser"]

    async def broken() -> Sequence[str]:
        raise ConnectionError("/secret")

    async def hung() -> Sequence[str]:
        await asyncio.sleep(3600)
        return []

    async def scenario() -> None:
        looks = [Look("stages", fine), Look("controller", broken), Look("database", hung)]
        unready = await asyncio.wait_for(health.unready(looks), 60)
        assert unready == ["Denoiser", "controller (ConnectionError)", "database (no answer)"]

    own_time.run(scenario())


def test_many_probes_of_a_hung_controller_hold_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "LIMIT_S", 0.1)
    free, begun = threading.Event(), []

    async def hung() -> Sequence[str]:
        begun.append(threading.get_ident())
        await asyncio.to_thread(free.wait)
        return []

    async def scenario() -> None:
        look = Look("controller", hung)
        try:
            for _ in range(5):
                answers = await asyncio.gather(*(look.unready() for _ in range(100)))
                assert {tuple(answer) for answer in answers} == {("controller (no answer)",)}
            assert len(begun) == 1
        finally:
            free.set()
        monkeypatch.setattr(health, "LIMIT_S", 60)
        assert await look.unready() == []

    asyncio.run(scenario())


def test_a_look_is_good_for_a_second_and_outlives_its_first_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(monotonic=lambda: now)
    monkeypatch.setattr(health, "time", clock)
    now, begun = 100.0, []

    async def count() -> Sequence[str]:
        begun.append(True)
        await asyncio.sleep(0.05)
        return []

    async def scenario() -> None:
        nonlocal now
        look = Look("x", count)
        first = asyncio.create_task(look.unready())
        await asyncio.sleep(0.01)
        first.cancel()
        assert await look.unready() == []
        now += health.FRESH_S
        assert await look.unready() == []
        assert len(begun) == 1
        now += 0.1
        assert await look.unready() == []
        assert len(begun) == 2

    own_time.run(scenario())


@pytest.mark.parametrize("error", [RuntimeError("no controller"), TimeoutError(), KeyError("x")])
def test_whatever_the_controller_raises_is_an_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    ingress = LocalIngress(AppArgs(checkpoint=DEMO, data_dir=str(tmp_path)))
    monkeypatch.setattr(serve, "get_replica_context", lambda: SimpleNamespace(app_name="cosmos3"))

    def status() -> Any:
        raise error

    monkeypatch.setattr(serve, "status", status)

    async def scenario() -> None:
        assert list(await Ingress.unready_stages(ingress)) == [f"Serve's controller ({type(error).__name__})"]
        await ingress.videos.table.close()

    asyncio.run(scenario())


def status_of(message: str, **deployments: str) -> ApplicationStatusOverview:
    replicas = {"RUNNING": 1}
    return ApplicationStatusOverview(
        "DEPLOYING",
        message,
        0,
        {
            name: DeploymentStatusOverview("UPDATING", "UNSPECIFIED", {} if told != "runs" else replicas, told)
            for name, told in deployments.items()
        },
    )


@pytest.mark.parametrize(
    ("message", "told"),
    [
        ("", ""),
        ("Replica has taken more than 30s.\nThis may be slow.", "Replica has taken more than 30s."),
        (
            "Failed. Error:\nRuntimeError: Traceback:\n  x: y\na.b.CheckpointError: /a/vae: cut\n",
            "CheckpointError: /a/vae: cut",
        ),
        (
            "Error:\ntorch.AcceleratorError: CUDA error: out of memory\nFor debugging: x\n",
            "AcceleratorError: CUDA error: out of memory",
        ),
    ],
)
def test_the_reason_of_a_failed_deployment_is_the_last_error_of_its_traces(message: str, told: str) -> None:
    assert unready_deployments(status_of("", Denoiser="runs", VideoDecoder=message)) == {"VideoDecoder": told}


def test_a_graph_that_cannot_be_built_has_a_reason_too() -> None:
    assert unready_deployments(status_of("Deploying failed:\nValueError: device: got 'cuda'\n")) == {
        "the graph": "ValueError: device: got 'cuda'"
    }


def test_the_public_reason_names_no_folder_and_no_url() -> None:
    unready = {"Denoiser": "", "VideoDecoder": "CheckpointError: /home/me/nano/vae/a.safetensors: cut"}
    assert health.public(unready) == ["Denoiser", "VideoDecoder: CheckpointError: vae/a.safetensors: cut"]
    assert health.public({"X": "no reply from postgresql://me:secret@host/db"}) == ["X: no reply from (a URL)"]
