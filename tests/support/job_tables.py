"""Steps on a job table that many tests share."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from sqlalchemy import update

from serve.estimates.cost import Cost
from serve.jobs.columns import JOBS
from serve.jobs.job import Job, JobSettings, NewJob, StoredArtifact
from serve.jobs.table import JobTable

T = TypeVar("T")
COST = Cost(model="m on cpu", mode="exact", passes=2, text=10, step=100, decode=50)
NEW = NewJob(model="m", params={"prompt": "x"}, cost=COST._asdict(), steps=4, fingerprint="f")
DURATIONS = {"tokenizer": 0.1, "denoiser": 2.0, "decoders": 1.0}
SETTINGS = JobSettings("", lease_s=30, max_attempts=3, max_queued_jobs=8, job_deadline_s=100, retention_s=100)


def run(settings: JobSettings, scenario: Callable[[JobTable], Awaitable[T]]) -> T:
    """A scenario on a table whose connections are closed afterwards."""

    async def scene() -> T:
        table = JobTable(settings, "m")
        try:
            return await scenario(table)
        finally:
            await table.close()

    return asyncio.run(scene())


async def submitted(table: JobTable, new: NewJob = NEW) -> Job:
    job = await table.submit(new)
    assert job is not None
    return job


async def claimed(table: JobTable) -> tuple[Job, str]:
    """The claimed job and its owner."""
    job = await table.claim()
    assert job is not None
    assert job.owner is not None
    return job, job.owner


async def started(table: JobTable) -> tuple[Job, str]:
    """A claimed job whose denoise has started, and its owner."""
    job, owner = await claimed(table)
    assert await table.start(owner) is not None
    return job, owner


async def completed(table: JobTable, new: NewJob = NEW) -> Job:
    job = await submitted(table, new)
    claim, owner = await started(table)
    assert await table.complete(claim, video(owner), DURATIONS)
    return await read(table, job)


async def read(table: JobTable, job: Job) -> Job:
    found = await table.get(job.id)
    assert found is not None
    return found


async def change(table: JobTable, job: Job, **values: Any) -> None:
    """Write columns of a row behind the table's back, such as a deadline that is over."""
    await table._database.write(
        lambda connection: connection.execute(update(JOBS).where(JOBS.c.seq == job.seq), values)
    )


def video(token: str) -> list[StoredArtifact]:
    """The artifacts of a job that made one file."""
    return [StoredArtifact("video", "video/mp4", 7, f"folder/{token}.mp4")]
