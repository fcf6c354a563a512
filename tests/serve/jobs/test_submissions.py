"""Storing jobs on both databases: one job for a key, an exact bound of the queue, shared commits."""

import asyncio
from dataclasses import replace
from typing import Any

from job_tables import NEW, run, started, submitted
from sqlalchemy.exc import StatementError

from serve.jobs.job import Job, JobSettings
from serve.jobs.table import JobTable

pytest_plugins = ["job_table_fixtures"]


def test_an_idempotency_key_makes_one_job_however_often_it_comes(settings: JobSettings) -> None:
    async def scenario(table: JobTable) -> None:
        keyed = NEW._replace(idempotency_key="k")
        jobs = await asyncio.gather(*(table.submit(keyed) for _ in range(10)))
        assert len({job.id for job in jobs if job}) == 1
        assert await table.queued() == 1

    run(settings, scenario)


def test_the_queue_is_bounded_exactly_however_many_come_at_once(settings: JobSettings) -> None:
    async def scenario(table: JobTable) -> None:
        jobs = await asyncio.gather(*(table.submit(NEW) for _ in range(30)))
        assert sum(job is not None for job in jobs) == 8
        assert await table.queued() == 8
        keyed = NEW._replace(idempotency_key="k")
        assert await table.submit(keyed) is None
        await started(table)
        known = await table.submit(keyed)
        assert known is not None
        assert await table.submit(NEW) is None
        again = await table.submit(keyed)
        assert again is not None
        assert again.id == known.id, "a stored job is answered, queue or no queue"

    run(settings, scenario)


def test_submissions_that_arrive_together_share_a_commit_and_keep_their_order(settings: JobSettings) -> None:
    async def scenario(table: JobTable) -> None:
        batches = []
        write = table._database.write_alone

        async def counted(transaction: Any) -> Any:
            batches.append(transaction)
            return await write(transaction)

        table._database.write_alone = counted  # type: ignore[method-assign]
        news = [NEW._replace(params={"prompt": str(number)}) for number in range(60)]
        stored = [job for job in await asyncio.gather(*map(table.submit, news)) if job]
        assert len(batches) <= 2
        assert [job.params for job in stored] == [new.params for new in news]
        assert stored == sorted(stored, key=lambda job: job.seq)
        assert await table.page(None, 60, newest_first=False) == stored, "what is answered is what is stored"

    run(replace(settings, max_queued_jobs=100), scenario)


def test_keys_and_room_count_within_a_batch_as_they_do_between_batches(settings: JobSettings) -> None:
    async def scenario(table: JobTable) -> None:
        known = await submitted(table, NEW._replace(idempotency_key="known"))
        keys = ["0", "known", None, "0", "1", None, "0"]
        answers = await asyncio.gather(*(table.submit(NEW._replace(idempotency_key=key)) for key in keys))
        ids = [job and job.id for job in answers]
        assert ids == [ids[0], known.id, ids[2], ids[0], None, None, ids[0]]
        assert len({known.id, ids[0], ids[2]}) == await table.queued() == 3

    run(replace(settings, max_queued_jobs=3), scenario)


def test_a_submission_that_cannot_be_stored_fails_none_beside_it(settings: JobSettings) -> None:
    async def scenario(table: JobTable) -> None:
        news = [NEW, NEW._replace(params={"prompt": object()}), NEW]
        first, second, third = await asyncio.gather(*map(table.submit, news), return_exceptions=True)
        assert isinstance(second, StatementError | TypeError)
        assert isinstance(first, Job)
        assert isinstance(third, Job)
        assert await table.queued() == 2

    run(settings, scenario)
