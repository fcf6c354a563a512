"""What Prometheus sees of the jobs, beside Ray Serve's own series. Ray puts ``ray_`` before every name."""

from ray.serve.metrics import Counter, Gauge, Histogram

from serve.jobs import Started

STAGE_SECONDS = [0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000, 3600]
WAIT_SECONDS = [0.1, 1, 10, 60, 300, 1000, 3600, 10_000, 36_000]


class JobMetrics:
    """The series of one runner."""

    def __init__(self) -> None:
        self._queued = Gauge("cosmos3_queued_jobs", "Jobs that wait, in the whole table.")
        self._wait = Histogram("cosmos3_queue_wait_seconds", "From storing a job to its denoise.", WAIT_SECONDS)
        self._ended = Counter("cosmos3_jobs_total", "Ended jobs by state.", ("state",))
        self._stage = Histogram("cosmos3_stage_seconds", "Time of a job in a stage.", STAGE_SECONDS, ("stage",))
        self._steps = Counter("cosmos3_denoise_steps_total", "Steps of finished videos.")
        self._retries = Counter("cosmos3_job_retries_total", "Denoises begun again and jobs given back.")
        self._stopped = Counter("cosmos3_jobs_stopped_total", "Jobs cancelled, deleted or lost while worked on.")
        self._bytes = Counter("cosmos3_stored_bytes_total", "Bytes of media stored.")

    def queued(self, jobs: int) -> None:
        self._queued.set(jobs)

    def started(self, started: Started) -> None:
        if started.attempts == 1:
            self._wait.observe(started.waited_s)
        else:
            self._retries.inc()

    def completed(self, stage_durations: dict[str, float], steps: int, stored_bytes: int) -> None:
        self._ended.inc(tags={"state": "completed"})
        for stage, seconds in stage_durations.items():
            self._stage.observe(seconds, tags={"stage": stage})
        self._steps.inc(steps)
        self._bytes.inc(stored_bytes)

    def failed(self, code: str) -> None:
        self._ended.inc(tags={"state": code})

    def retried(self) -> None:
        self._retries.inc()

    def revoked(self) -> None:
        self._stopped.inc()
