"""A job runner in this process, over a real table and a real store, and what it counts and logs."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fakes import OF_A_VIDEO, FakeGraph, FakeHandle
from job_tables import NEW, read, submitted

from serve.app import AppArgs
from serve.graph.artifacts import Artifact, FinishedRequest
from serve.graph.graph import Stages
from serve.jobs.job import Job
from serve.jobs.media_store import MediaStore
from serve.jobs.metrics import EndedJobs
from serve.jobs.migrations import prepare
from serve.jobs.runner import JobRunner
from serve.jobs.table import JobTable

ONE_STEP = NEW._replace(steps=1)
ARTIFACTS = tuple(Artifact.of(name, name.encode()) for name in OF_A_VIDEO)
DENOISING = {"type": "progress", "stage": "denoiser", "step": 0, "steps": 1}
DECODING = {"type": "progress", "stage": "decoders", "step": 0, "steps": 1}
FINISHED = FinishedRequest(ARTIFACTS, {"stage_durations": {"denoiser": 1.0}})


def with_runner(
    folder: Path, scenario: Callable[[JobRunner, JobTable, MediaStore], Awaitable[None]], **changes: Any
) -> None:
    """A scenario on a runner that is given no work.

    Args:
        changes: fields of ``AppArgs``.
    """
    args = AppArgs(**{"data_dir": str(folder)} | changes)
    stages: Any = Stages(*[FakeHandle()] * len(Stages._fields))

    async def scene() -> None:
        runner = JobRunner(stages, args.job_settings(), args.media(), "m")
        table = JobTable(args.job_settings(), "m")
        await scenario(runner, table, MediaStore(args.media()))
        await table.close()
        await runner.close()

    asyncio.run(scene())


async def stored(table: JobTable) -> Job:
    """A queued job."""
    return await submitted(table, ONE_STEP)


async def made(runner: JobRunner, table: JobTable, *script: Any) -> Job:
    """A job that the runner has worked on, with a graph that follows the script."""
    graph: Any = FakeGraph(*script)
    runner._graph = graph
    job = await stored(table)
    await runner.work()
    return await read(table, job)


def database_id(folder: Path) -> str:
    return prepare(AppArgs(data_dir=str(folder)).job_settings().database_url)


def files(folder: Path) -> set[str]:
    """All of the media store, by name below it."""
    media = folder / "media"
    return {str(path.relative_to(media)) for path in media.rglob("*") if path.is_file()}


class Ends(EndedJobs):
    """Keeps what is counted."""

    def __init__(self) -> None:
        self.states: list[str] = []
        super().__init__()
        counter: Any = SimpleNamespace(inc=lambda tags: self.states.append(tags["state"]))
        self._ended = counter


def counted(runner: JobRunner) -> Ends:
    """The ends of jobs that the runner counts from now on."""
    ends = runner._metrics.ended = Ends()
    return ends


def lines_about(caplog: pytest.LogCaptureFixture, job: Job, event: str) -> list[logging.LogRecord]:
    fields = [(record, getattr(record, "ray_serve_extra_fields", {})) for record in caplog.records]
    return [record for record, named in fields if (named.get("job_id"), named.get("event")) == (job.id, event)]
