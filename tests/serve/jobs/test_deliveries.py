"""Events of ended jobs, from a runner to a real receiver; OpenAI's client verifies them."""

import asyncio
import logging
import re
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import openai
import pytest
from fakes import FakeGraph
from job_runners import DENOISING, FINISHED, ONE_STEP, lines_about, with_runner
from job_tables import change, read, submitted
from paths import ROOT
from receiver import ENDLESS, OTHER_SECRET, SECRET, SLOW, Receiver, receiving, webhook_args
from running_server import free_port

from serve import secret_file
from serve.errors import StageFailed
from serve.jobs.job import Job
from serve.jobs.media_store import MediaStore
from serve.jobs.runner import JobRunner
from serve.jobs.table import JobTable
from serve.jobs.webhooks import deliveries
from serve.jobs.webhooks.deliveries import Deliveries

MADE = (DENOISING, FINISHED)


@pytest.fixture(autouse=True)
def no_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deliveries, "FIRST_DELAY_S", 0.01)
    monkeypatch.setattr(deliveries, "LOOK_S", 1000)
    monkeypatch.setattr(secret_file, "LOOK_S", 0)


async def ended(runner: JobRunner, table: JobTable, url: str | None, *script: Any) -> Job:
    """A job whose end goes to ``url``, after the first attempt."""
    graph: Any = FakeGraph(*script)
    runner._graph = graph
    job = await submitted(table, ONE_STEP._replace(webhook_url=url))
    await runner.work()
    return await read(table, job)


async def nothing_to_send(table: JobTable, job: Job) -> Job:
    """The job, once there is no further attempt."""
    async with asyncio.timeout(90):
        while (now := await read(table, job)).webhook_due_at is not None:
            await asyncio.sleep(0.01)
    return now


def with_receiver(
    folder: Path, receiver: Receiver, scenario: Callable[[JobRunner, JobTable], Awaitable[None]], **changes: Any
) -> None:
    async def scene(runner: JobRunner, table: JobTable, _: MediaStore) -> None:
        await scenario(runner, table)

    with_runner(folder, scene, **webhook_args(folder, receiver.url) | changes)


@pytest.mark.parametrize(
    ("script", "kind"), [(MADE, "video.completed"), ((DENOISING, StageFailed("it failed")), "video.failed")]
)
def test_the_end_of_a_job_is_one_signed_event(tmp_path: Path, script: Any, kind: str) -> None:
    async def scenario(runner: JobRunner, table: JobTable) -> None:
        job = await ended(runner, table, f"{receiver.url}/hook?token=1", *script)
        (request,) = receiver.received
        event = request.event()
        assert (event.object, event.type, event.data.id) == ("event", kind, job.id)
        assert event.created_at == int(job.completed_at or 0)
        assert event.id == request.headers["webhook-id"] == f"evt_{job.id.removeprefix('video_')}"
        assert request.path == "/hook?token=1"
        assert request.headers["content-type"] == "application/json"
        assert (job.webhook_due_at, job.webhook_attempts) == (None, 1), "sent before the runner let go of the job"

    with receiving() as receiver:
        with_receiver(tmp_path, receiver, scenario)


def test_a_job_without_a_url_sends_nothing(tmp_path: Path) -> None:
    async def scenario(runner: JobRunner, table: JobTable) -> None:
        job = await ended(runner, table, None, *MADE)
        assert (job.status, job.webhook_due_at, receiver.received) == ("completed", None, [])

    with receiving() as receiver:
        with_receiver(tmp_path, receiver, scenario)


def test_each_secret_of_the_file_signs_so_that_one_can_be_replaced(tmp_path: Path) -> None:
    async def scenario(runner: JobRunner, table: JobTable) -> None:
        await ended(runner, table, receiver.url, *MADE)
        (request,) = receiver.received
        assert request.event(SECRET) == request.event(OTHER_SECRET)
        with pytest.raises(openai.InvalidWebhookSignatureError):
            request.event("whsec_" + "AAAA" * 8)
        with pytest.raises(openai.InvalidWebhookSignatureError):
            request._replace(body=request.body.replace(b"completed", b"failed")).event()

    args = webhook_args(tmp_path)
    Path(args["webhook_secrets_file"]).write_text(f"{SECRET}\n{OTHER_SECRET}\n")
    with receiving() as receiver:
        with_receiver(tmp_path, receiver, scenario)


def test_an_event_is_repeated_until_it_is_answered_and_follows_no_redirect(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario(runner: JobRunner, table: JobTable) -> None:
        job = await ended(runner, table, f"{receiver.url}/hook", *MADE)
        assert (await nothing_to_send(table, job)).webhook_attempts == 5
        assert {request.path for request in receiver.received} == {"/hook"}
        assert len({request.headers["webhook-id"] for request in receiver.received}) == 1
        assert len({request.body for request in receiver.received}) == 1
        assert {request.event().data.id for request in receiver.received} == {job.id}
        assert lines_about(caplog, job, "webhook_given_up") == []

    with receiving(500, 302, 404, 503, 204) as receiver:
        with_receiver(tmp_path, receiver, scenario)
    assert len(receiver.received) == 5


def test_an_answer_that_does_not_come_in_time_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deliveries, "TIMEOUT_S", 0.5)

    async def scenario(runner: JobRunner, table: JobTable) -> None:
        job = await ended(runner, table, receiver.url, *MADE)
        monkeypatch.setattr(deliveries, "TIMEOUT_S", 60)
        assert (await nothing_to_send(table, job)).webhook_attempts > 1

    with receiving(SLOW) as receiver:
        with_receiver(tmp_path, receiver, scenario)


def test_a_body_without_end_is_not_read(tmp_path: Path) -> None:
    async def scenario(runner: JobRunner, table: JobTable) -> None:
        job = await ended(runner, table, receiver.url, *MADE)
        assert (job.webhook_due_at, job.webhook_attempts) == (None, 1)

    with receiving(ENDLESS) as receiver:
        with_receiver(tmp_path, receiver, scenario)


def test_a_receiver_that_was_down_gets_the_event_when_it_is_back(tmp_path: Path) -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}"

    async def scenario(runner: JobRunner, table: JobTable, _: MediaStore) -> None:
        job = await ended(runner, table, url, *MADE)
        assert job.status == "completed"
        assert job.webhook_attempts > 0
        with receiving(port=port) as receiver:
            await nothing_to_send(table, job)
            assert [request.event().data.id for request in receiver.received] == [job.id]

    with_runner(tmp_path, scenario, **webhook_args(tmp_path, url))


@pytest.mark.parametrize("left", ["after a failed attempt", "in the middle of one"])
def test_an_event_survives_a_restart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, left: str) -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    monkeypatch.setattr(deliveries, "FIRST_DELAY_S", 1000)
    jobs: list[Job] = []

    async def dies(runner: JobRunner, table: JobTable, _: MediaStore) -> None:
        if left == "in the middle of one":

            async def attempt(*_: Any) -> None:
                pass

            monkeypatch.setattr(Deliveries, "_attempt", attempt)
        jobs.append(await ended(runner, table, url, *MADE))
        assert jobs[0].webhook_due_at is not None, "the next attempt, or the end of a lease"
        loop = runner._upkeep.pop()
        loop.cancel()
        await asyncio.wait([loop])
        await change(table, jobs[0], webhook_due_at=1.0)  # when that time has come

    with_runner(tmp_path, dies, **webhook_args(tmp_path, url))
    monkeypatch.undo()

    async def starts(_: JobRunner, table: JobTable, __: MediaStore) -> None:
        await nothing_to_send(table, jobs[0])

    with receiving(port=port) as receiver:
        with_runner(tmp_path, starts, **webhook_args(tmp_path, url))
    assert [request.event().data.id for request in receiver.received] == [jobs[0].id]


def test_a_job_that_another_process_has_failed_is_sent_as_well(tmp_path: Path) -> None:
    async def scenario(runner: JobRunner, table: JobTable) -> None:
        job = await submitted(table, ONE_STEP._replace(webhook_url=receiver.url))
        await change(table, job, deadline_at=1.0)
        await runner._reconcile()
        (request,) = await asyncio.to_thread(receiver.wait_for, 1)
        assert (request.event().type, request.event().data.id) == ("video.failed", job.id)

    with receiving() as receiver:
        with_receiver(tmp_path, receiver, scenario)


def given_up(caplog: pytest.LogCaptureFixture, job: Job) -> str:
    """The one line about it."""
    (line,) = lines_about(caplog, job, "webhook_given_up")
    assert line.levelno == logging.WARNING
    return line.message


def test_410_ends_the_attempts_at_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def scenario(runner: JobRunner, table: JobTable) -> None:
        job = await ended(runner, table, f"{receiver.url}/hook?token=hunter2", *MADE)
        assert (job.webhook_due_at, job.webhook_attempts) == (None, 1)
        assert f"url={receiver.url}/hook attempts=1 reason=status 410" in given_up(caplog, job)
        assert "hunter2" not in caplog.text

    with receiving(410) as receiver:
        with_receiver(tmp_path, receiver, scenario)


@pytest.mark.parametrize("limit", ["a day", "the record's end"])
def test_an_event_is_given_up_after_a_day_and_before_its_record_goes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, limit: str
) -> None:
    async def scenario(runner: JobRunner, table: JobTable) -> None:
        job = await ended(runner, table, receiver.url, *MADE)
        assert job.webhook_attempts == 1
        if limit == "a day":
            assert job.webhook_due_at is not None
            await change(table, job, completed_at=(job.completed_at or 0) - 86_400, webhook_due_at=1.0)
            assert runner._deliveries is not None
            runner._deliveries.look()
            assert (await nothing_to_send(table, job)).webhook_attempts == 2
        assert job.webhook_due_at is None or limit == "a day"
        assert "reason=status 500" in given_up(caplog, job)

    monkeypatch.setattr(deliveries, "FIRST_DELAY_S", 1000)
    with receiving(500, 500) as receiver:
        with_receiver(tmp_path, receiver, scenario, retention_s=400 if limit == "the record's end" else 604_800)


def test_a_target_that_is_no_longer_listed_gets_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def scenario(runner: JobRunner, table: JobTable) -> None:
        job = await ended(runner, table, f"{receiver.url}/other", *MADE)
        assert job.webhook_due_at is None
        assert "deploy.yaml no longer lists its target" in given_up(caplog, job)

    with receiving() as receiver:
        with_receiver(tmp_path, receiver, scenario, webhook_targets=[f"{receiver.url}/hook"])
    assert receiver.received == []


def test_nothing_is_sent_unsigned(tmp_path: Path) -> None:
    args = webhook_args(tmp_path)
    file = Path(args["webhook_secrets_file"])

    async def scenario(runner: JobRunner, table: JobTable) -> None:
        file.write_text("")
        job = await ended(runner, table, receiver.url, *MADE)
        assert job.webhook_due_at is not None
        assert receiver.received == []
        file.write_text(OTHER_SECRET)
        await nothing_to_send(table, job)
        assert receiver.received[0].event(OTHER_SECRET).data.id == job.id

    with receiving() as receiver:
        with_receiver(tmp_path, receiver, scenario)


def test_the_receiver_of_the_documentation_reads_an_event(tmp_path: Path) -> None:
    (code,) = re.findall(r"```python\n([^`]*class Receiver.*?)```", (ROOT / "docs/api.md").read_text(), re.DOTALL)
    port = free_port()
    url, args = f"http://127.0.0.1:{port}", webhook_args(tmp_path)

    async def scenario(runner: JobRunner, table: JobTable, _: MediaStore) -> None:
        job = await nothing_to_send(table, await ended(runner, table, url, *MADE))
        assert await asyncio.to_thread(process.stdout.readline) == f"video.completed {job.id}\n"

    script = code.replace("9000", str(port))
    with subprocess.Popen([sys.executable, "-c", script], cwd=tmp_path, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            with_runner(tmp_path, scenario, **args | {"webhook_targets": [url]})
        finally:
            process.kill()


def test_a_server_without_targets_has_nothing_that_sends(tmp_path: Path) -> None:
    async def scenario(runner: JobRunner, _: JobTable, __: MediaStore) -> None:
        assert runner._deliveries is None

    with_runner(tmp_path, scenario)


def test_an_idle_server_asks_nothing_between_its_looks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deliveries, "FIRST_DELAY_S", 1000)
    monkeypatch.setattr(deliveries, "LOOK_S", 10)

    async def scenario(runner: JobRunner, table: JobTable) -> None:
        assert runner._deliveries is not None
        assert await runner._deliveries._start_due() == deliveries.LOOK_S
        await ended(runner, table, receiver.url, *MADE)
        assert await runner._deliveries._start_due() == deliveries.LOOK_S, "the next attempt is later"

    with receiving(500) as receiver:
        with_receiver(tmp_path, receiver, scenario)


def test_attempts_are_twice_as_far_apart_each_time_up_to_an_hour(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deliveries, "FIRST_DELAY_S", 5)
    for attempt, longest in [(1, 5), (2, 10), (3, 20), (12, 3600), (5000, 3600)]:
        delays = {deliveries._delay_s(attempt) for _ in range(50)}
        assert longest / 2 <= min(delays) < max(delays) <= longest
