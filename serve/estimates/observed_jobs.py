"""What estimates need of the jobs in the table and of the requests beside it."""

from typing import NamedTuple

from serve.estimates.cost import Cost


class Preview(NamedTuple):
    """Which preview a job shows: the steps done when it was estimated, and when it was stored."""

    step: int
    shown_at: int


class ActiveJob(NamedTuple):
    """A job that has not ended, for estimates and events.

    Attributes:
        seq: order of arrival.
        stage, step: where it is; ``step`` of ``steps`` of its denoise are done.
        cost: None for a row of version 1.
        running_s: seconds since its denoise started; 0 before that.
        attempts: how often its denoise has started.
        preview: its newest one.
        upsampling_pending: its prompt must be rewritten before it can start.
    """

    seq: int
    status: str
    stage: str | None
    step: int
    steps: int
    cost: Cost | None
    running_s: float
    attempts: int = 0
    id: str = ""
    preview: Preview | None = None
    upsampling_pending: bool = False


class FinishedJob(NamedTuple):
    """A job that has completed.

    Attributes:
        stage_durations: seconds by stage.
        wall_s: seconds since its denoise started.
        after_last_s: seconds between the completion of the job before it and its own.
    """

    cost: Cost
    steps: int
    stage_durations: dict[str, float]
    wall_s: float
    after_last_s: float
