"""Which events are to be sent, and by whom, in both databases."""

import asyncio
from pathlib import Path

import pytest
from job_tables import DURATIONS, NEW, change, claimed, read, run, started, submitted, video
from sqlalchemy import text

from serve.jobs.database import sync_engine
from serve.jobs.job import CANCELLED, DEADLINE, Job, JobSettings, Outcome
from serve.jobs.migrations import prepare
from serve.jobs.table import JobTable
from serve.jobs.webhooks.outbox import LEASE_S

pytest_plugins = ["job_table_fixtures"]

URL = "https://hooks.example.com/x"
TOLD = NEW._replace(webhook_url=URL)
BROKEN = Outcome("stage_failed", "it failed")


async def completed(table: JobTable) -> Job:
    job = await submitted(table, TOLD)
    claim, owner = await started(table)
    assert await table.complete(claim, video(owner), DURATIONS)
    return await read(table, job)


def test_the_end_of_a_job_and_its_event_are_one_write(settings: JobSettings) -> None:
    async def scenario(table: JobTable) -> None:
        queued = await submitted(table, TOLD)
        assert (queued.webhook_url, queued.webhook_due_at, queued.webhook_attempts) == (URL, None, 0)
        assert await table.outbox.wait_s() is None
        assert await table.outbox.claim(9) == []
        claim, owner = await started(table)
        assert await table.complete(claim, video(owner), DURATIONS)
        assert ((await read(table, queued)).webhook_due_at or 0) > 0
        failed = await submitted(table, TOLD)
        _, owner = await started(table)
        assert await table.fail(owner, BROKEN)
        assert (await table.outbox.wait_s() or 0) <= 0
        first, second = await table.outbox.claim(9)
        assert [first.id, second.id] == [queued.id, failed.id]
        assert [first.status, second.status] == ["completed", "failed"]
        assert (first.url, first.attempt, first.completed_at) == (URL, 1, (await read(table, queued)).completed_at)
        assert 0 <= first.age_s < 60 and 40 < first.remaining_s <= settings.retention_s
        assert 0 < (await table.outbox.wait_s() or 0) <= LEASE_S

    run(settings, scenario)


def test_a_job_without_a_url_and_a_cancelled_one_have_no_event(settings: JobSettings) -> None:
    async def scenario(table: JobTable) -> None:
        await submitted(table)
        claim, owner = await started(table)
        assert await table.complete(claim, video(owner), DURATIONS)
        waiting = await submitted(table, TOLD)
        assert [job.outcome for job in await table.cancel(waiting.id)] == [CANCELLED]
        for outcome in (None, BROKEN):  # the runner notices, or the graph fails before it does
            running = await submitted(table, TOLD)
            _, owner = await started(table)
            assert await table.cancel(running.id) == []
            assert await (table.fail(owner, outcome) if outcome else table.fail_expired(owner))
        deleted = await completed(table)
        assert await table.delete(deleted.id)
        assert await table.outbox.wait_s() is None

    run(settings, scenario)


def test_a_job_that_no_runner_could_end_has_an_event(settings: JobSettings) -> None:
    async def scenario(table: JobTable) -> None:
        job = await submitted(table, TOLD)
        await change(table, job, deadline_at=1.0)
        assert [failed.outcome for failed in await table.fail_expired()] == [DEADLINE]
        assert [delivery.id for delivery in await table.outbox.claim(9)] == [job.id]

    run(settings, scenario)


def test_of_many_processes_one_makes_each_attempt(settings: JobSettings) -> None:
    async def scenario(table: JobTable) -> None:
        jobs = [await completed(table) for _ in range(6)]
        foreign, *others = [JobTable(settings, model) for model in ("another model", "m", "m", "m", "m")]
        assert await foreign.outbox.wait_s() is None
        claims = await asyncio.gather(*(each.outbox.claim(2) for each in (table, *others) for _ in range(3)))
        ids = [delivery.id for claim in claims for delivery in claim]
        while rest := await table.outbox.claim(2):  # on PostgreSQL, who comes second may leave with nothing
            ids += [delivery.id for delivery in rest]
        assert sorted(ids) == sorted(job.id for job in jobs)
        for other in (foreign, *others):
            await other.close()

    run(settings, scenario)


def test_an_attempt_whose_lease_is_over_can_change_nothing(settings: JobSettings) -> None:
    async def scenario(table: JobTable) -> None:
        job = await completed(table)
        assert await table.outbox.claim(1, seq=job.seq + 1) == []
        (late,) = await table.outbox.claim(1, seq=job.seq)
        assert await table.outbox.claim(1, seq=job.seq) == []
        await change(table, job, webhook_due_at=1.0)
        (current,) = await table.outbox.claim(1)
        assert (late.attempt, current.attempt) == (1, 2)
        await table.outbox.finish(late)
        assert 0 < (await table.outbox.wait_s() or 0) <= LEASE_S
        await table.outbox.retry(current, 1000)
        assert 900 < (await table.outbox.wait_s() or 0) <= 1000
        await table.outbox.finish(current)
        assert await table.outbox.wait_s() is None
        assert (await read(table, job)).webhook_attempts == 2

    run(settings, scenario)


def test_a_claimed_job_has_no_event_before_its_end(settings: JobSettings) -> None:
    async def scenario(table: JobTable) -> None:
        await submitted(table, TOLD)
        _, owner = await claimed(table)
        assert await table.release(owner)
        assert await table.outbox.wait_s() is None

    run(settings, scenario)


@pytest.mark.parametrize("query", ["min(webhook_due_at)", "seq"])
def test_events_are_found_without_a_look_at_every_job(tmp_path: Path, query: str) -> None:
    url = f"sqlite:///{tmp_path}/jobs.sqlite"
    prepare(url)
    run(JobSettings(url, 1, 1, 9, 9, 9), submitted)
    engine = sync_engine(url)
    with engine.connect() as connection:
        where = "webhook_due_at IS NOT NULL" if query != "seq" else "webhook_due_at <= 1 ORDER BY webhook_due_at"
        plan = connection.execute(text(f"EXPLAIN QUERY PLAN SELECT {query} FROM jobs WHERE model = 'm' AND {where}"))
        assert "jobs_by_webhook" in " ".join(str(row) for row in plan)
    engine.dispose()
