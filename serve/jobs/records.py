"""A job's record and its events, as clients get them."""

from collections.abc import Iterator
from typing import Any

from cosmos3_models import GenerationParams
from cosmos3_models.references import reference_frames
from serve.estimates.cost import percent, stored_cost
from serve.estimates.observed_jobs import ActiveJob
from serve.estimates.schedule import Schedule
from serve.graph.stage_names import AFTER_DENOISER, DENOISER, QUEUE
from serve.jobs.job import Job
from serve.jobs.watcher import JobState
from serve.schema import ReferenceRecord, Video, VideoError, described

EVENTS_OF_AN_ATTEMPT = 1000  # event numbers: steps from 0, with a place after each, then the stages after the denoiser
EVENTS_OF_A_STEP = 2  # itself, and a preview that is stored before the next one
STAGE_EVENTS = {stage: number for number, stage in enumerate(AFTER_DENOISER, start=500)}
QUEUED_EVENT, LAST_EVENT = 998, 999

NumberedEvent = tuple[int, dict[str, Any]]


def record_of(job: Job, schedule: Schedule) -> Video:
    """Return the record of a job, with its place in the queue and the time to its completion."""
    estimate = schedule.estimate(job.seq)
    params = GenerationParams.model_construct(**job.params)
    error = None if job.error_code is None else VideoError(code=job.error_code, message=job.error_message or "")
    return Video(
        # As stored: it is never checked against the rules of this release.
        **described(params, job.seconds, job.metadata, _frames_before(job, params)),
        id=job.id,
        model=job.model,
        status=job.status,  # type: ignore[arg-type]  # pydantic checks it
        progress=_percent(job),
        created_at=int(job.created_at),
        started_at=None if job.status == "queued" else _whole(job.started_at),
        completed_at=_whole(job.completed_at),
        expires_at=_whole(job.expires_at),
        error=error,
        remixed_from_video_id=job.remixed_from_video_id,
        revised_prompt=job.revised_prompt,
        prompt_upsampling_error=job.prompt_upsampling_error,
        input_reference=None if job.input_reference is None else ReferenceRecord(**job.input_reference._asdict()),
        stage=job.stage,
        step=job.step,
        queue_position=estimate.position,
        eta_s=estimate.rounded_eta_s,
        attempts=job.attempts,
        stage_durations=_durations(job),
        request_id=job.request_id,
    )


def _frames_before(job: Job, params: GenerationParams) -> int:
    """Return the frames of a continued clip, but for those that the new frames repeat."""
    clip = job.input_reference
    if clip is None or not clip.continued:
        return 0
    return clip.frames - reference_frames(params, clip.kind)


def _whole(time_s: float | None) -> int | None:
    return None if time_s is None else int(time_s)


def _durations(job: Job) -> dict[str, float] | None:
    """Return seconds by stage. ``queue`` is the time from creation to completion in which no stage worked."""
    if job.status != "completed" or job.stage_durations is None or job.completed_at is None:
        return None
    worked_s = sum(seconds for stage, seconds in job.stage_durations.items() if stage != QUEUE)
    return job.stage_durations | {QUEUE: round(max(0.0, job.completed_at - job.created_at - worked_s), 3)}


def _percent(job: Job) -> int:
    if job.status == "completed":
        return 100
    return percent(stored_cost(job.cost), job.step, job.steps)


def events_of(state: JobState, video: Video | None) -> Iterator[NumberedEvent]:
    """Yield the events of a job's current attempt up to now; ``video`` is the record of a job that has ended."""
    job, estimate = state
    eta_s = estimate.rounded_eta_s
    start, cost = job.attempts * EVENTS_OF_AN_ATTEMPT, job.cost if isinstance(job, ActiveJob) else stored_cost(job.cost)
    if job.status == "queued":
        event = {"type": "queued", "queue_position": estimate.position, "stage": job.stage, "eta_s": eta_s}
        yield start + QUEUED_EVENT, event
        return
    for step in range(job.step + 1 if job.attempts else 0):
        progress = percent(cost, step, job.steps)
        event = {"type": "progress", "stage": DENOISER, "step": step, "steps": job.steps, "progress": progress}
        yield start + EVENTS_OF_A_STEP * step, event | {"eta_s": eta_s}
        if job.preview is not None and job.preview.shown_at == step:
            event = {"type": "preview", "step": job.preview.step, "steps": job.steps, "progress": progress}
            yield start + EVENTS_OF_A_STEP * step + 1, event | {"eta_s": eta_s}
    if job.stage in STAGE_EVENTS:
        event = {"type": "progress", "stage": job.stage, "step": job.steps, "steps": job.steps}
        yield start + STAGE_EVENTS[job.stage], event | {"progress": percent(cost, job.step, job.steps), "eta_s": eta_s}
    if video is not None:
        yield start + LAST_EVENT, {"type": job.status, "video": video.model_dump()}
