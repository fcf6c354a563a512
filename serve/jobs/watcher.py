"""One reader of the job table for all open event streams."""

import asyncio
import contextvars
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import NamedTuple

from serve.estimates.observed_jobs import ActiveJob
from serve.estimates.schedule import Estimate
from serve.jobs.job import Job

logger = logging.getLogger("ray.serve")


class JobState(NamedTuple):
    """What a stream of events needs of a job: one that has ended comes with its whole record."""

    job: ActiveJob | Job
    estimate: Estimate

    @property
    def reported(self) -> tuple[object, ...]:
        """What events report; a change of the estimated time alone does not cause an event."""
        job = self.job
        return job.status, job.attempts, job.stage, job.step, job.preview, self.estimate.position


@dataclass(eq=False)
class _Follower:
    """One stream. ``changed`` is set until it has yielded ``state``; None means that the job is not in the table."""

    video_id: str
    state: JobState | None = None
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def update(self, state: JobState | None) -> None:
        """Take the state that was just read, and wake the stream if it reports a change."""
        if state is None or self.state is None or state.reported != self.state.reported:
            self.state = state
            self.changed.set()


class Watcher:
    """Reads the followed jobs once per period, however many streams follow them.

    Args:
        read: the states of those of the jobs that are in the table.
    """

    def __init__(self, read: Callable[[Collection[str]], Awaitable[Mapping[str, JobState]]], period_s: float) -> None:
        self._read = read
        self._period_s = period_s
        self._followers: set[_Follower] = set()
        self._joined = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def follow(self, video_id: str) -> AsyncGenerator[JobState, None]:
        """Yield the job's state now and after each change.

        Ends when the job is no longer in the table. While the database is unavailable nothing changes.
        """
        follower = _Follower(video_id)
        self._followers.add(follower)
        self._joined.set()
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._watch(), context=contextvars.Context())
        try:
            while await follower.changed.wait():
                follower.changed.clear()
                if follower.state is None:
                    return
                yield follower.state
        finally:
            self._followers.discard(follower)

    async def _watch(self) -> None:
        while self._followers:
            self._joined.clear()
            followers = list(self._followers)
            try:
                states = await self._read({follower.video_id for follower in followers})
            except Exception:  # the streams stay open until the next period
                logger.warning("The jobs of the open event streams cannot be read.", exc_info=True)
            else:
                for follower in followers:
                    follower.update(states.get(follower.video_id))
            with suppress(TimeoutError):
                async with asyncio.timeout(self._period_s):
                    await self._joined.wait()
