"""Metrics and log lines of the jobs, beside Ray Serve's own series. Ray puts ``ray_`` before every name."""

import logging
from collections.abc import Iterable
from typing import Any, Literal

from ray.serve.metrics import Counter, Gauge, Histogram

from serve.jobs.job import CANCELLED, DEADLINE, LOST, FailedJob, Job, Started

logger = logging.getLogger("ray.serve")

STAGE_SECONDS = [0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000, 3600]
WAIT_SECONDS = [0.1, 1, 10, 60, 300, 1000, 3600, 10_000, 36_000]


class EndedJobs:
    """Counts and logs each job's end, in whichever process and way it ends."""

    def __init__(self) -> None:
        self._ended = Counter("cosmos3_jobs_total", "Ended jobs by state.", ("state",))

    def completed(self, job: Job, **fields: Any) -> None:
        """Count and log a completed job, with further fields for the log."""
        self._ended.inc(tags={"state": "completed"})
        log_job("completed", job.id, job.request_id, **fields)

    def failed(self, jobs: Iterable[FailedJob]) -> None:
        """Count and log failed jobs by reason."""
        for job in jobs:
            code = job.outcome.code
            self._ended.inc(tags={"state": code})
            if job.outcome in (DEADLINE, LOST):
                message = "Failed 1 job that exceeded its deadline or retry limit"
                log_job("failed", job.id, job.request_id, message, level=logging.WARNING, reason=code)
            else:
                log_job("cancelled" if job.outcome == CANCELLED else "failed", job.id, job.request_id, reason=code)

    def deleted(self, job: Job) -> None:
        """Count a job that was deleted before it ended."""
        if not job.ended:
            self._ended.inc(tags={"state": "deleted"})
            log_job("deleted", job.id, job.request_id)


class WebhookMetrics:
    """Counts the events of ended jobs."""

    def __init__(self) -> None:
        self._sent = Counter("cosmos3_webhooks_total", "Attempts to send the event of a job, by result.", ("result",))

    def count(self, result: Literal["delivered", "failed", "given_up"]) -> None:
        """Count an attempt: after one that failed there is another one."""
        self._sent.inc(tags={"result": result})


class JobMetrics:
    """The series of one runner.

    Attributes:
        ended: counts and logs the ends of jobs.
    """

    def __init__(self) -> None:
        self.ended = EndedJobs()
        self._queued = Gauge("cosmos3_queued_jobs", "Jobs of this model that wait, in the whole table.")
        self._wait = Histogram("cosmos3_queue_wait_seconds", "From storing a job to its denoise.", WAIT_SECONDS)
        self._stage = Histogram("cosmos3_stage_seconds", "Time of a job in a stage.", STAGE_SECONDS, ("stage",))
        self._steps = Counter("cosmos3_denoise_steps_total", "Steps of finished videos.")
        self._retries = Counter("cosmos3_job_retries_total", "Restarted denoises and released jobs.")
        self._stopped = Counter("cosmos3_jobs_stopped_total", "Jobs cancelled, deleted or lost while in progress.")
        self._bytes = Counter("cosmos3_stored_bytes_total", "Bytes of media stored.")

    def queued(self, jobs: int) -> None:
        """Set the number of queued jobs."""
        self._queued.set(jobs)

    def started(self, started: Started) -> None:
        """Count a started denoise: its wait if it is the job's first, a retry otherwise."""
        if started.attempts == 1:
            self._wait.observe(started.waited_s)
        else:
            self._retries.inc()

    def completed(self, job: Job, stage_durations: dict[str, float], stored_bytes: int) -> None:
        """Count and log a completed job, its seconds by stage and its stored bytes."""
        self.ended.completed(
            job, bytes=stored_bytes, **{f"{stage}_s": seconds for stage, seconds in stage_durations.items()}
        )
        for stage, seconds in stage_durations.items():
            self._stage.observe(seconds, tags={"stage": stage})
        self._steps.inc(job.steps)
        self._bytes.inc(stored_bytes)

    def retried(self) -> None:
        """Count a released job."""
        self._retries.inc()

    def revoked(self) -> None:
        """Count a job that was taken from its runner."""
        self._stopped.inc()


def log_job(
    event: str, job_id: str, request_id: str | None, text: str = "", level: int = logging.INFO, **fields: Any
) -> None:
    """Write one line about a job: text for readers, fields for programs where Serve logs JSON."""
    named = {"job_id": job_id, "request_id": request_id, **fields}
    values = " ".join(f"{name}={value}" for name, value in named.items())
    extra = {"ray_serve_extra_fields": {"event": event} | named}
    logger.log(level, f"{text or f'job {event}'}: {values}", extra=extra)
