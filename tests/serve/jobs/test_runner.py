"""A runner's states, with graphs that follow a script: how a claimed job ends, and what is counted and logged."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fakes import FakeGraph
from job_runners import (
    ARTIFACTS,
    DECODING,
    DENOISING,
    FINISHED,
    Ends,
    counted,
    database_id,
    files,
    lines_about,
    made,
    stored,
    with_runner,
)
from job_tables import change, read

from serve.errors import (
    ContentRefused,
    DatabaseUnavailable,
    InvalidRequest,
    NotReady,
    QueueFull,
    ServingError,
    StageFailed,
)
from serve.jobs import retries
from serve.jobs import runner as runner_module
from serve.jobs.job import StoredArtifact
from serve.jobs.media_store import MediaStore
from serve.jobs.runner import SLOTS, JobRunner
from serve.jobs.table import JobTable
from serve.jobs.videos import Videos


@pytest.fixture(autouse=True)
def no_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retries, "DATABASE_WAIT_S", 0.01)
    monkeypatch.setattr(runner_module, "RELEASE_DELAY_S", 0.0)


def test_a_job_ends_with_every_artifact_in_the_store_and_in_its_row(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario(runner: JobRunner, table: JobTable, media: MediaStore) -> None:
        ends = counted(runner)
        job = await made(runner, table, DENOISING, DECODING, FINISHED)
        assert (job.status, job.attempts, job.step, job.stage, job.owner) == ("completed", 1, 1, None, None)
        assert list(job.stage_durations or {}) == ["denoiser", "storing"]
        assert [(each.name, each.media_type, each.size) for each in job.artifacts] == [
            (artifact.name, artifact.media_type, len(artifact.data)) for artifact in ARTIFACTS
        ]
        for artifact, entry in zip(ARTIFACTS, job.artifacts, strict=True):
            assert entry.file.startswith(database_id(tmp_path) + "/")
            assert [block async for block in media.read(entry.file, 0, 99)] == [artifact.data]
        assert ends.states == ["completed"]
        assert runner._claims == {}
        (line,) = lines_about(caplog, job, "completed")
        assert f"bytes={sum(len(artifact.data) for artifact in ARTIFACTS)}" in line.message

    with caplog.at_level(logging.INFO, "ray.serve"):
        with_runner(tmp_path, scenario)


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (StageFailed("the denoiser failed 3 times"), "stage_failed", "the denoiser failed 3 times"),
        (InvalidRequest("height: got 9", "height"), "invalid_value", "height: got 9"),
        (ContentRefused("a weapon"), "content_policy_violation", "a weapon"),
        (ValueError("/secret/path"), "internal_error", "internal error; the server's log has the details"),
    ],
    ids=["stage failed", "bad input", "refused frames", "unexpected"],
)
def test_an_error_of_the_graph_fails_the_job(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, error: Exception, code: str, message: str
) -> None:
    async def scenario(runner: JobRunner, table: JobTable, _: MediaStore) -> None:
        ends = counted(runner)
        job = await made(runner, table, DENOISING, error)
        assert (job.status, job.error_code, job.error_message) == ("failed", code, message)
        assert ends.states == [code]
        assert files(tmp_path) == set()
        assert ("/secret/path" in caplog.text) == (code == ServingError.code), "a trace only where nothing else tells"

    with_runner(tmp_path, scenario)


@pytest.mark.parametrize("error", [QueueFull("full", retry_after_s=1), NotReady("away")], ids=["full", "not ready"])
def test_a_job_that_finds_no_stage_is_released_and_completed_by_a_later_claim(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, error: ServingError
) -> None:
    async def scenario(runner: JobRunner, table: JobTable, _: MediaStore) -> None:
        job = await made(runner, table, error)
        assert (job.status, job.owner, job.attempts) == ("queued", None, 0)
        assert len(lines_about(caplog, job, "released")) == 1
        graph: Any = FakeGraph(DENOISING, FINISHED)
        runner._graph = graph
        await runner.work()
        assert (await read(table, job)).status == "completed"

    with caplog.at_level(logging.INFO, "ray.serve"):
        with_runner(tmp_path, scenario)


def test_a_job_that_has_started_as_often_as_it_may_fails_instead_of_being_released(tmp_path: Path) -> None:
    async def scenario(runner: JobRunner, table: JobTable, _: MediaStore) -> None:
        job = await made(runner, table, DENOISING, DENOISING, QueueFull("full", retry_after_s=1))
        assert (job.status, job.error_code, job.attempts) == ("failed", "queue_full", 2)

    with_runner(tmp_path, scenario, max_attempts=2)


def test_a_denoise_beyond_the_retry_limit_does_not_start(tmp_path: Path) -> None:
    async def scenario(runner: JobRunner, table: JobTable, _: MediaStore) -> None:
        job = await made(runner, table, DENOISING, DENOISING, FINISHED)
        assert (job.status, job.error_code, job.attempts) == ("failed", "attempts_exhausted", 1)

    with_runner(tmp_path, scenario, max_attempts=1)


def test_a_graph_that_ends_without_a_result_is_an_internal_error(tmp_path: Path) -> None:
    async def scenario(runner: JobRunner, table: JobTable, _: MediaStore) -> None:
        assert (await made(runner, table, DENOISING)).error_code == "internal_error"

    with_runner(tmp_path, scenario)


def losing(table: JobTable, method: str, before: bool) -> None:
    """Let a write of the table fail once, before it or after it, when only its answer is lost."""
    write: Callable[..., Awaitable[Any]] = getattr(table, method)

    async def once(*args: Any) -> Any:
        setattr(table, method, write)
        if not before:
            await write(*args)
        raise DatabaseUnavailable("the job table cannot be reached; try again")

    setattr(table, method, once)


@pytest.mark.parametrize("before", [True, False], ids=["not written", "answer lost"])
@pytest.mark.parametrize("method", ["start", "complete"])
def test_a_write_that_fails_once_is_repeated(tmp_path: Path, method: str, before: bool) -> None:
    async def scenario(runner: JobRunner, table: JobTable, _: MediaStore) -> None:
        ends = counted(runner)
        losing(runner._table, method, before)
        job = await made(runner, table, DENOISING, FINISHED)
        assert job.status == "completed"
        assert job.attempts == (2 if method == "start" and not before else 1)
        assert files(tmp_path) == set(job.files)
        assert ends.states == ["completed"]

    with_runner(tmp_path, scenario)


def test_the_files_of_a_job_that_was_deleted_meanwhile_are_removed(tmp_path: Path) -> None:
    async def scenario(runner: JobRunner, table: JobTable, _: MediaStore) -> None:
        ends, complete = counted(runner), runner._table.complete

        async def too_late(job: Any, artifacts: list[StoredArtifact], durations: Any) -> bool:
            assert files(tmp_path) == {artifact.file for artifact in artifacts}, "the files come first"
            await table.delete(job.id)
            return await complete(job, artifacts, durations)

        runner._table.complete = too_late  # type: ignore[method-assign]
        graph: Any = FakeGraph(DENOISING, FINISHED)
        runner._graph = graph
        job = await stored(table)
        await runner.work()
        assert await table.get(job.id) is None
        assert files(tmp_path) == set()
        assert ends.states == []

    with_runner(tmp_path, scenario)


def test_a_replica_that_must_stop_at_once_releases_its_job(tmp_path: Path) -> None:
    async def scenario(runner: JobRunner, table: JobTable, _: MediaStore) -> None:
        reached = asyncio.Event()
        graph: Any = FakeGraph(DENOISING, lambda: set_and_wait(reached))
        runner._graph = graph
        job = await stored(table)
        work = asyncio.create_task(runner.work())
        await reached.wait()
        work.cancel()
        await asyncio.wait([work])
        job = await read(table, job)
        assert (job.status, job.owner, job.attempts) == ("queued", None, 1)
        assert await table.claim() is not None, "at once"

    with_runner(tmp_path, scenario)


async def set_and_wait(event: asyncio.Event) -> None:
    """Tell that this point is reached, and stay here."""
    event.set()
    await asyncio.Event().wait()


def test_a_job_that_another_runner_has_claimed_is_dropped_and_not_ended(tmp_path: Path) -> None:
    async def scenario(runner: JobRunner, table: JobTable, _: MediaStore) -> None:
        ends, reached = counted(runner), asyncio.Event()
        graph: Any = FakeGraph(DENOISING, lambda: set_and_wait(reached))
        runner._graph = graph
        job = await stored(table)
        work = asyncio.create_task(runner.work())
        await reached.wait()
        (claim,) = runner._claims.values()
        await table.release(claim.owner)  # as if its lease were over
        other = await table.claim()
        assert other is not None
        while not work.done():
            await runner._heartbeat()
            await asyncio.sleep(0.01)
        assert ends.states == []
        assert (await read(table, job)).owner == other.owner

    with_runner(tmp_path, scenario)


def test_a_runner_that_is_stopping_claims_no_job(tmp_path: Path) -> None:
    async def scenario(runner: JobRunner, table: JobTable, _: MediaStore) -> None:
        await stored(table)
        assert runner.drain() == 0
        await runner.work()
        assert await table.claim() is not None

    with_runner(tmp_path, scenario)


def test_jobs_that_end_without_a_runner_are_counted_and_logged_once_each(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario(runner: JobRunner, table: JobTable, _: MediaStore) -> None:
        ends = counted(runner)
        tired, late = await stored(table), await stored(table)
        claimed = await table.claim()
        assert claimed is not None
        assert claimed.owner is not None
        await table.start(claimed.owner)
        await table.release(claimed.owner)
        await runner._reconcile()
        assert ends.states == ["attempts_exhausted"]
        await change(table, late, deadline_at=0.0)
        await runner._reconcile()
        await runner._reconcile()
        assert ends.states == ["attempts_exhausted", "deadline_exceeded"]
        for job in (tired, late):
            (line,) = lines_about(caplog, job, "failed")
            assert line.levelno == logging.WARNING
            assert line.message.startswith("Failed 1 job that exceeded its deadline or retry limit: job_id=" + job.id)

    with caplog.at_level(logging.INFO, "ray.serve"):
        with_runner(tmp_path, scenario, max_attempts=1)


def test_cancelled_and_deleted_jobs_are_counted_where_they_end(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario(runner: JobRunner, table: JobTable, media: MediaStore) -> None:
        videos = Videos(runner._settings, media, "m", runner._folder)
        ends = videos._ended = Ends()
        cancelled, deleted = await stored(table), await stored(table)
        await videos.cancel(cancelled.id)
        await videos.delete(deleted.id)
        await videos.delete(cancelled.id)
        await videos.delete((await made(runner, table, DENOISING, FINISHED)).id)
        assert ends.states == ["cancelled", "deleted"], "those that had ended by themselves were counted then"
        assert len(lines_about(caplog, cancelled, "cancelled")) == len(lines_about(caplog, deleted, "deleted")) == 1
        await videos.table.close()

    with caplog.at_level(logging.INFO, "ray.serve"):
        with_runner(tmp_path, scenario)


@pytest.mark.parametrize("deleted", [False, True])
@pytest.mark.parametrize("denoising", [False, True])
def test_a_job_that_is_taken_from_its_runner_is_counted_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, deleted: bool, denoising: bool
) -> None:
    """Even if heartbeats continue while the database is slow to answer why it was taken."""

    async def scenario(runner: JobRunner, table: JobTable, _: MediaStore) -> None:
        may_start, reached = asyncio.Event(), asyncio.Event()
        if denoising:
            may_start.set()
        graph: Any = FakeGraph(may_start.wait, DENOISING, lambda: set_and_wait(reached))
        runner._graph, ends, revoked = graph, counted(runner), []
        monkeypatch.setattr(runner._metrics, "revoked", lambda: revoked.append(1))
        fail_expired = runner._table.fail_expired

        async def slow(*owner: str) -> Any:
            failed = await fail_expired(*owner)
            await asyncio.sleep(0.2)
            return failed

        monkeypatch.setattr(runner._table, "fail_expired", slow)
        job = await stored(table)
        work = asyncio.create_task(runner.work())
        while [bool(claim.attempts) for claim in runner._claims.values()] != [denoising]:
            await asyncio.sleep(0.01)
        await (table.delete if deleted else table.cancel)(job.id)
        may_start.set()
        await asyncio.sleep(0.1)  # a denoise that may not start notices by itself
        while not work.done():
            await runner._heartbeat()
            await asyncio.sleep(0.01)
        assert (ends.states, revoked) == ([] if deleted else ["cancelled"], [1])

    with_runner(tmp_path, scenario)


def test_a_runner_notifies_only_while_it_has_a_free_slot_and_once_for_many_reasons(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner_module, "NOTIFY_PERIOD_S", 1000)

    async def scenario(runner: JobRunner, table: JobTable, _: MediaStore) -> None:
        sent: list[int] = []
        runner._runners = SimpleNamespace(work=SimpleNamespace(remote=lambda: sent.append(1)))
        job: Any = SimpleNamespace(job=None)
        runner._claims = {str(number): job for number in range(SLOTS)}
        await stored(table)
        await runner._reconcile()
        await asyncio.sleep(0.02)
        assert sent == [], "no slot is free"
        runner._claims.popitem()
        for _attempt in range(100):
            await runner._reconcile()
            runner._notify()
        await asyncio.sleep(0.02)
        assert len(sent) == 1
        runner._claims.clear()

    with_runner(tmp_path, scenario)
