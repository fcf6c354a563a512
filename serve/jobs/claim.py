"""A claimed job while a runner works on it."""

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from serve import tracing
from serve.jobs.job import ClaimProgress, Job, StoredArtifact

NOT_STARTED = ClaimProgress()
ATTEMPT, JOB_QUEUE = "job", "job queue"  # the spans of an attempt, and of the time in the table before the first one


class Revoked(Exception):
    """The job no longer belongs to this runner, or may not continue."""


@dataclass
class Claim:
    """A claimed job while a runner works on it.

    Attributes:
        progress: what the next heartbeat writes; ``written`` is what the last one wrote.
        preview: the newest one, which its row lists.
        showing: held while a preview takes the place of the one before it: each after the other, and none at the end.
        ending: the record's end is being written, and that write tells whether the job still belongs to the runner.
    """

    job: Job
    owner: str
    attempts: int = 0
    progress: ClaimProgress = NOT_STARTED
    written: ClaimProgress = NOT_STARTED
    written_at: float = field(default_factory=time.monotonic)
    preview: StoredArtifact | None = None
    showing: asyncio.Lock = field(default_factory=asyncio.Lock)
    ending: bool = False
    work: "asyncio.Task[None] | None" = None

    @contextmanager
    def traced(self, name: str = ATTEMPT) -> Iterator[None]:
        """Make a span of the work on the job, in the trace of the request that stored it."""
        job, attempt = self.job, self.job.attempts + 1
        about = {"video_id": job.id, "request_id": job.request_id}
        with tracing.span(name, job.traceparent, attempt=attempt, **about):
            if name == ATTEMPT and attempt == 1:
                tracing.past(JOB_QUEUE, time.time() - job.created_at)
            yield
