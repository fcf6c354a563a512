"""Admission and estimates under load: the real ingress and runner, with a denoiser that keeps time."""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fakes import fake_application, picklable
from ray import serve
from running_server import Server

from serve.app import AppArgs

QUEUE = 16
STEP_S = 0.1
REQUEST = {"prompt": "x", "size": "32x32", "num_frames": 5, "num_inference_steps": 12}
SHORT = REQUEST | {"num_inference_steps": 4}


@pytest.fixture(scope="module")
def url(server: Server, tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An application with a queue of 16 and two ingress replicas, beside the real one."""
    args = AppArgs(
        checkpoint=str(tiny_checkpoint), data_dir=str(tmp_path_factory.mktemp("load")), max_queued_jobs=QUEUE
    )
    with picklable():
        serve.run(fake_application(args, STEP_S, runners=2, ingresses=2), name="load", route_prefix="/load")
        yield f"{server.url}/load/v1/videos"
        serve.delete("load")


@pytest.fixture
def lone_url(server: Server, tiny_checkpoint: Path, tmp_path: Path) -> Iterator[str]:
    """An application with one ingress replica, which sees all requests."""
    args = AppArgs(checkpoint=str(tiny_checkpoint), data_dir=str(tmp_path))
    with picklable():
        serve.run(fake_application(args, STEP_S), name="lone", route_prefix="/lone")
        yield f"{server.url}/lone/v1/videos"
        serve.delete("lone")


def ended(url: str, video_id: str) -> dict[str, Any]:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        record: dict[str, Any] = httpx.get(f"{url}/{video_id}", timeout=30).json()
        if record["status"] in ("completed", "failed"):
            return record
        time.sleep(0.1)
    raise TimeoutError(record)


def test_a_hundred_clients_and_a_queue_of_sixteen(url: str, record_property: Callable[[str, object], None]) -> None:
    warm = httpx.post(url, json=REQUEST, timeout=30).json()
    assert ended(url, warm["id"])["status"] == "completed"

    async def storm() -> list[httpx.Response]:
        async with httpx.AsyncClient(timeout=60, limits=httpx.Limits(max_connections=100)) as client:
            return await asyncio.gather(*(client.post(url, json=SHORT | {"seed": seed}) for seed in range(100)))

    start = time.monotonic()
    answers = asyncio.run(storm())
    took_s = time.monotonic() - start
    counts = Counter(answer.status_code for answer in answers)
    assert set(counts) == {200, 429}
    started_meanwhile = int(took_s / (STEP_S * SHORT["num_inference_steps"])) + 2  # one runs, and time went by
    assert QUEUE <= counts[200] <= QUEUE + started_meanwhile
    for answer in answers:
        if answer.status_code == 429:
            assert 1 <= int(answer.headers["retry-after"]) <= 5, "the next place is free within a job's time"
            assert answer.json()["error"]["code"] == "queue_full"
    kept = [answer.json()["id"] for answer in answers if answer.status_code == 200]
    assert {ended(url, video)["status"] for video in kept} == {"completed"}, "none is lost"
    figures = {"kept": counts[200], "told 429": counts[429], "seconds to answer all": round(took_s, 2)}
    record_property("load", figures)


def test_estimates_are_within_a_quarter_on_a_steady_load(url: str) -> None:
    jobs = [httpx.post(url, json=REQUEST, timeout=30).json()["id"] for _ in range(10)]
    ended(url, jobs[3])
    records = httpx.get(url, params={"limit": len(jobs)}, timeout=30).json()["data"][::-1]
    at = time.monotonic()
    assert [record["id"] for record in records] == jobs
    took = {}
    while len(took) < len(jobs):
        for record in httpx.get(url, params={"limit": len(jobs)}, timeout=30).json()["data"]:
            if record["status"] == "completed":
                took.setdefault(record["id"], time.monotonic() - at)
        time.sleep(0.1)
    waiting = [record for record in records if record["queue_position"] >= 2]
    assert [record["queue_position"] for record in waiting] == list(range(2, len(waiting) + 2))
    assert len(waiting) >= 4
    for record in waiting:
        assert record["eta_s"] == pytest.approx(took[record["id"]], rel=0.25)


def test_requests_whose_clients_wait_count_in_the_estimates(lone_url: str) -> None:
    def submitted() -> float:
        job = httpx.post(lone_url, json=REQUEST, timeout=30).json()
        eta_s: float = job["eta_s"] or 0.0  # nobody knows of the first one
        assert ended(lone_url, job["id"])["status"] == "completed"
        return eta_s

    submitted()
    alone_s = submitted()
    events = serve.get_app_handle("lone").options(stream=True).stream.remote(REQUEST | {"num_inference_steps": 100})
    assert [next(events)["step"] for _ in range(2)] == [0, 1]
    behind_s = submitted()
    assert list(events)[-1]["type"] == "video"
    assert behind_s - alone_s > 0.5 * 100 * STEP_S, "the denoiser is taken for that long"
