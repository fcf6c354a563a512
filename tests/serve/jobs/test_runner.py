"""What a runner does besides its jobs: record and file go together, and files without a record go too."""

import asyncio
import logging
import math
import os
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cosmos3_models import GenerationParams
from serve.app import AppArgs
from serve.errors import MediaUnavailable, StageFailed
from serve.estimates.cost import Cost
from serve.graph.artifacts import MEDIA_TYPES, Artifact, FinishedRequest
from serve.graph.graph import Stages
from serve.jobs import runner as runner_module
from serve.jobs.job import Job, NewJob, StoredArtifact
from serve.jobs.media_store import MediaStore
from serve.jobs.metrics import EndedJobs
from serve.jobs.migrations import prepare
from serve.jobs.runner import ORPHAN_AGE_S, SLOTS, JobRunner
from serve.jobs.table import JobTable
from serve.jobs.videos import Videos

NEW = NewJob(model="m", params={}, cost={}, steps=1)


def with_runner(
    folder: Path, scenario: Callable[[JobRunner, JobTable, MediaStore], Awaitable[None]], **changes: Any
) -> None:
    """A scenario on a runner that is given no work."""
    args = AppArgs(**{"data_dir": str(folder), "retention_s": 0.2} | changes)
    stage: Any = SimpleNamespace(options=lambda **_: None)

    async def scene() -> None:
        runner = JobRunner(Stages(stage, stage, stage, stage), args.job_settings(), args.media(), "m")
        table = JobTable(args.job_settings(), "m")
        await scenario(runner, table, MediaStore(args.media()))
        await table.close()
        await runner.close()

    asyncio.run(scene())


ARTIFACTS = tuple(Artifact(name, kind, b"x") for name, kind in MEDIA_TYPES.items())


async def finish(table: JobTable, media: MediaStore, folder: str) -> set[str]:
    """A job whose artifacts are stored; the names of its files."""
    await table.submit(NEW)
    job = await table.claim()
    assert job is not None
    assert job.owner is not None
    await table.start(job.owner)
    stored = [StoredArtifact.of(artifact, f"{folder}/{job.owner}") for artifact in ARTIFACTS]
    for artifact in stored:
        await media.write(artifact.file, b"x")
    assert await table.complete(job, stored, {"denoiser": 1.0})
    return {artifact.file for artifact in stored}


def test_a_runner_that_is_stopping_claims_no_job(tmp_path: Path) -> None:
    async def scenario(runner: JobRunner, table: JobTable, _: MediaStore) -> None:
        await table.submit(NEW)
        assert runner.drain() == 0
        await runner.work()
        assert await table.claim() is not None

    with_runner(tmp_path, scenario)


def test_record_and_files_expire_together(tmp_path: Path) -> None:
    async def scenario(runner: JobRunner, table: JobTable, media: MediaStore) -> None:
        folder = database_id(tmp_path)
        await finish(table, media, folder)
        await asyncio.sleep(0.3)
        kept = await finish(table, media, folder)
        await runner.remove_expired()
        assert [set(job.files) for job in await table.page(None, 9, newest_first=True)] == [kept]
        assert files(tmp_path) == kept

    with_runner(tmp_path, scenario)


def test_old_files_without_a_record_are_swept_and_all_others_stay(tmp_path: Path) -> None:
    async def scenario(runner: JobRunner, table: JobTable, media: MediaStore) -> None:
        folder = database_id(tmp_path)
        kept = await finish(table, media, folder)
        orphans = [f"{folder}/{'a' * 32}.mp4", f"{folder}/{'b' * 32}.mp4.0123.part"]
        others = [
            f"{folder}/{'c' * 32}.mp4",  # which is new
            "holiday.mp4",
            f"{'d' * 32}.mp4",  # of a release that had no folders
            f"{'e' * 32}/{'f' * 32}.mp4",  # another database's
        ]
        for name in (*orphans, *others):
            await media.write(name, b"x")
        for name in files(tmp_path) - {others[0]}:
            age(tmp_path / "media" / name, ORPHAN_AGE_S + 1)
        await runner.remove_orphans()
        assert files(tmp_path) == {*others, *kept}

    with_runner(tmp_path, scenario)


def test_a_database_put_back_to_an_earlier_state_loses_no_file_that_a_record_may_yet_name(tmp_path: Path) -> None:
    """The rows of the last hours are missing until a newer copy is put in place; their videos must still be there."""

    async def scenario(runner: JobRunner, table: JobTable, media: MediaStore) -> None:
        kept = await finish(table, media, database_id(tmp_path))
        (job,) = await table.page(None, 9, newest_first=True)
        await table.delete(job.id)
        for name in files(tmp_path):
            age(tmp_path / "media" / name, ORPHAN_AGE_S + 60)
        await runner.remove_orphans()
        assert files(tmp_path) == kept

    with_runner(tmp_path, scenario, retention_s=604_800)


def test_a_server_leaves_the_videos_of_another_one_in_the_same_store_alone(tmp_path: Path) -> None:
    media_url = str(tmp_path / "media")
    finished: list[set[str]] = []

    async def make(_: JobRunner, table: JobTable, media: MediaStore) -> None:
        finished.append(await finish(table, media, database_id(tmp_path / "production")))
        for name in files(tmp_path):
            age(tmp_path / "media" / name, 10 * 604_800)

    async def sweep(runner: JobRunner, *_: object) -> None:
        await runner.remove_orphans()
        assert files(tmp_path) == finished[0]

    with_runner(tmp_path / "production", make, media_url=media_url)
    with_runner(tmp_path / "staging", sweep, media_url=media_url)


def database_id(folder: Path) -> str:
    return prepare(AppArgs(data_dir=str(folder)).job_settings().database_url)


def files(folder: Path) -> set[str]:
    """All of the media store, by name below it."""
    media = folder / "media"
    return {str(path.relative_to(media)) for path in media.rglob("*") if path.is_file()}


def age(path: Path, age_s: float) -> None:
    old = time.time() - age_s
    os.utime(path, (old, old))


class Refusing(MediaStore):
    """A store that refuses the first so many writes."""

    def __init__(self, url: str, refusals: float) -> None:
        super().__init__(url)
        self.refusals = refusals

    async def write(self, name: str, data: bytes) -> None:
        self.refusals -= 1
        if self.refusals >= 0:
            raise MediaUnavailable("the media store does not answer; try again")
        await super().write(name, data)


class MadeAtOnce:
    """A graph without stages."""

    async def run(self, params: GenerationParams, model: str) -> AsyncGenerator[Any, None]:
        yield {"type": "progress", "stage": "denoiser", "step": 0, "steps": 1}
        record = {"model": model, "prompt": params.prompt, "stage_durations": {"denoiser": 1.0}}
        yield FinishedRequest(ARTIFACTS, record)


async def made(runner: JobRunner, table: JobTable, media: MediaStore) -> Job:
    """A job that the runner has made, with that store."""
    graph: Any = MadeAtOnce()
    runner._graph, runner._media = graph, media
    submitted = await table.submit(NEW._replace(params={"prompt": "x"}))
    assert submitted is not None
    await runner.work()
    job = await table.get(submitted.id)
    assert job is not None
    return job


class Ends(EndedJobs):
    """Keeps what is counted."""

    def __init__(self) -> None:
        self.states: list[str] = []
        super().__init__()
        counter: Any = SimpleNamespace(inc=lambda tags: self.states.append(tags["state"]))
        self._ended = counter


def watched(runner: JobRunner) -> Ends:
    """What the runner counts from now on."""
    ends = runner._metrics.ended = Ends()
    return ends


def lines_about(caplog: pytest.LogCaptureFixture, job: Job, event: str) -> list[logging.LogRecord]:
    fields = [(record, getattr(record, "ray_serve_extra_fields", {})) for record in caplog.records]
    return [record for record, named in fields if (named.get("job_id"), named.get("event")) == (job.id, event)]


async def stored(table: JobTable) -> Job:
    cost = Cost(model="m on cpu", mode="exact", passes=2, text=10, step=100, decode=50)
    job = await table.submit(NEW._replace(params={"prompt": "x"}, cost=cost._asdict()))
    assert job is not None
    return job


def test_jobs_that_end_without_a_runner_are_counted_and_logged_once_each(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario(runner: JobRunner, table: JobTable, _: MediaStore) -> None:
        ends = watched(runner)
        tired, late = await stored(table), await stored(table)
        claimed = await table.claim()
        assert claimed is not None
        assert claimed.owner is not None
        await table.start(claimed.owner)
        await table.release(claimed.owner)
        await runner._reconcile()
        assert ends.states == ["attempts_exhausted"]
        await asyncio.sleep(1)
        await runner._reconcile()
        await runner._reconcile()
        assert ends.states == ["attempts_exhausted", "deadline_exceeded"]
        for job in (tired, late):
            (line,) = lines_about(caplog, job, "failed")
            assert line.levelno == logging.WARNING
            assert line.message.startswith("Failed 1 job that exceeded its deadline or retry limit: job_id=" + job.id)

    with caplog.at_level(logging.INFO, "ray.serve"):
        with_runner(tmp_path, scenario, retention_s=600, job_deadline_s=1, max_attempts=1)


def test_cancelled_and_deleted_jobs_are_counted_where_they_end(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario(runner: JobRunner, table: JobTable, media: MediaStore) -> None:
        videos, folder = Videos(runner._settings, media, "m"), database_id(tmp_path)
        ends = videos._ended = Ends()
        cancelled, deleted = await stored(table), await stored(table)
        await videos.cancel(cancelled.id)
        await videos.delete(deleted.id)
        await videos.delete(cancelled.id)
        await finish(table, media, folder)
        (completed,) = await table.page(None, 9, newest_first=True)
        await videos.delete(completed.id)
        assert ends.states == ["cancelled", "deleted"], "those that had ended by themselves were counted then"
        assert len(lines_about(caplog, cancelled, "cancelled")) == len(lines_about(caplog, deleted, "deleted")) == 1
        await videos.table.close()

    with caplog.at_level(logging.INFO, "ray.serve"):
        with_runner(tmp_path, scenario, retention_s=600)


class Endless:
    """A graph whose denoise begins when it may and never ends."""

    def __init__(self) -> None:
        self.may_begin = asyncio.Event()

    async def run(self, *_: object) -> AsyncGenerator[Any, None]:
        await self.may_begin.wait()
        yield {"type": "progress", "stage": "denoiser", "step": 0, "steps": 1}
        await asyncio.Event().wait()


@pytest.mark.parametrize("deleted", [False, True])
@pytest.mark.parametrize("denoising", [False, True])
def test_a_job_that_is_taken_from_its_runner_is_counted_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, deleted: bool, denoising: bool
) -> None:
    """Also where heartbeats go on while the database is slow to say why it was taken."""

    async def scenario(runner: JobRunner, table: JobTable, _: MediaStore) -> None:
        graph: Any = Endless()
        if denoising:
            graph.may_begin.set()
        runner._graph, ends, revoked = graph, watched(runner), []
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
        graph.may_begin.set()
        await asyncio.sleep(0.1)  # a denoise that may not begin finds out by itself
        while not work.done():
            await runner._heartbeat()
            await asyncio.sleep(0.01)
        assert (ends.states, revoked) == ([] if deleted else ["cancelled"], [1])

    with_runner(tmp_path, scenario, retention_s=600)


class Failing:
    """A graph that fails a job after its record was taken from the runner."""

    def __init__(self, table: JobTable, taken: bool) -> None:
        self._table, self._taken = table, taken

    async def run(self, *_: object) -> AsyncGenerator[Any, None]:
        yield {"type": "progress", "stage": "denoiser", "step": 0, "steps": 1}
        if self._taken:
            (job,) = await self._table.page(None, 1, newest_first=True)
            await self._table.delete(job.id)
        raise StageFailed("the denoiser failed 3 times on this request")


@pytest.mark.parametrize("taken", [False, True])
def test_a_failure_counts_only_where_the_job_was_still_the_runners(tmp_path: Path, taken: bool) -> None:
    async def scenario(runner: JobRunner, table: JobTable, _: MediaStore) -> None:
        graph: Any = Failing(table, taken)
        runner._graph, ends = graph, watched(runner)
        await stored(table)
        await runner.work()
        assert ends.states == ([] if taken else [StageFailed.code])

    with_runner(tmp_path, scenario, retention_s=600)


def test_a_runner_notifies_only_while_it_has_a_free_slot_and_once_for_many_reasons(tmp_path: Path) -> None:
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
        assert 1 <= len(sent) < 40
        runner._claims.clear()

    with_runner(tmp_path, scenario, retention_s=600)


def test_a_finished_video_waits_for_its_store_for_as_long_as_it_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner_module, "STORE_WAITS_S", (0.0, 0.001))

    async def scenario(runner: JobRunner, table: JobTable, media: MediaStore) -> None:
        del media
        job = await made(runner, table, Refusing(str(tmp_path / "media"), refusals=200))
        assert (job.status, job.attempts) == ("completed", 1), "it was not denoised again"

    with_runner(tmp_path, scenario, retention_s=600)


def test_a_store_that_stays_away_ends_the_job_at_its_deadline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner_module, "STORE_WAITS_S", (0.01,))

    async def scenario(runner: JobRunner, table: JobTable, media: MediaStore) -> None:
        del media
        job = await made(runner, table, Refusing(str(tmp_path / "media"), refusals=math.inf))
        assert (job.status, job.error_code, job.attempts) == ("failed", "deadline_exceeded", 1)

    with_runner(tmp_path, scenario, retention_s=600, job_deadline_s=1)
