"""Handle calls of other Ray jobs: their values, their errors, and how a burst of them is handled."""

import asyncio
import inspect
import json
import pickle
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

from cosmos3_models.checkpoint.folder import DEMO
from serve.app import AppArgs
from serve.http.routes import create_api

REQUEST = {"prompt": "x", "size": "32x32", "num_frames": 5}


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
