"""What estimates need of the jobs in the table and of the requests beside it."""

from typing import NamedTuple

from serve.estimates.cost import Cost


class ActiveJob(NamedTuple):
    """A job that has not ended, for estimates and events.

    Attributes:
        seq: order of arrival.
        stage, step: where it is; ``step`` of ``steps`` of its denoise are done.
        cost: None for a row of version 1.
        running_s: seconds since its denoise started; 0 before that.
        attempts: how often its denoise has started.
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
