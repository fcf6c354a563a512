"""The job table's statements. Their conditions define which claim may change which row."""

from collections.abc import Iterator
from functools import cached_property
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Executable,
    Select,
    Update,
    and_,
    bindparam,
    case,
    func,
    insert,
    or_,
    select,
    update,
)

from serve.estimates.observed_jobs import ActiveJob, FinishedJob
from serve.graph.stage_names import DENOISER, PROMPT_UPSAMPLER
from serve.jobs.columns import JOBS, MAX_MESSAGE_CHARS, Now
from serve.jobs.job import ACTIVE, CANCELLED, DEADLINE, LOST, JobSettings, Outcome
from serve.jobs.webhooks.outbox import due_at_the_end
from serve.schema import ListQuery

RECENT_JOBS = 5000  # completed ones, from which time is estimated
SAMPLES_PER_SIZE = 5  # the last of each size and number of steps, and no more
MOST_SAMPLES = 200
PROGRESS: dict[str, Any] = {"stage": bindparam("at_stage"), "step": bindparam("at_step")}
SIZE_OF_A_JOB = ("model", "mode", "passes", "decode", "velocity_reuse", "guidance_reuse")  # fields of its cost


class Statements:
    """The statements over the jobs of one model.

    Those that run several times a second are properties: to build one takes longer than to execute it.

    Args:
        model: whose jobs are claimed, counted and failed for their attempts.
    """

    def __init__(self, settings: JobSettings, model: str) -> None:
        self._settings = settings
        self._of_model = JOBS.c.model == model
        self._model = model

    @cached_property
    def queued(self) -> "Select[int]":
        """Count the queued jobs."""
        return select(func.count()).where(self._of_model, JOBS.c.status == "queued")

    @cached_property
    def next(self) -> "Select[int]":
        """Select the oldest free job whose next stage has room.

        That is the rewriting of its prompt, if it is to be rewritten, or the wait before the denoisers.
        """
        may_run = and_(self._of_model, ~JOBS.c.cancel_requested, JOBS.c.deadline_at > Now())
        attempts_remain = JOBS.c.attempts < self._settings.max_attempts
        claimable = and_(JOBS.c.status.in_(ACTIVE), free(), may_run, attempts_remain)
        claimed = JOBS.alias("claimed")
        live = and_(claimed.c.model == self._model, claimed.c.lease_until > Now())
        queued = and_(live, claimed.c.owner.is_not(None), claimed.c.status == "queued")
        waiting = select(func.count()).where(queued, ~claimed.c.upsampling_pending)
        upsampling = select(func.count()).where(queued, claimed.c.upsampling_pending)
        denoising = select(func.count()).where(live, claimed.c.status == "in_progress", claimed.c.stage == DENOISER)
        room = or_(waiting.scalar_subquery() < 1, waiting.scalar_subquery() < denoising.scalar_subquery())
        may_ask = upsampling.scalar_subquery() < self._settings.max_upsampling
        next_stage = or_(and_(JOBS.c.upsampling_pending, may_ask), and_(~JOBS.c.upsampling_pending, room))
        return select(JOBS.c.seq).where(claimable, next_stage).order_by(JOBS.c.seq).limit(1)

    @cached_property
    def claim(self) -> Executable:
        """Give the next job to the claim ``token``."""
        lease = {"owner": bindparam("token"), "lease_until": Now() + self._settings.lease_s}
        stage = case((JOBS.c.upsampling_pending, PROMPT_UPSAMPLER), else_=None)
        return (
            update(JOBS)
            .where(JOBS.c.seq == self.next.correlate(None).scalar_subquery())
            .values({"status": "queued", "stage": stage, "step": 0} | lease)
            .returning(JOBS)
        )

    @cached_property
    def start(self) -> Executable:
        """Count one more started denoise of the job of ``claim``; return the fields of ``Started``."""
        return (
            update(JOBS)
            .where(_owned_by("claim"), JOBS.c.attempts < self._settings.max_attempts)
            .values(
                status="in_progress",
                stage=DENOISER,
                step=0,
                attempts=JOBS.c.attempts + 1,
                started_at=Now(),
                lease_until=Now() + self._settings.lease_s,
            )
            .returning(JOBS.c.attempts, JOBS.c.started_at - JOBS.c.created_at)
        )

    @cached_property
    def complete(self) -> Update:
        """Complete the job of ``claim`` with its ``listed`` artifacts and its ``durations``."""
        durations = bindparam("durations", type_=JOBS.c.stage_durations.type)
        made = {"artifacts": bindparam("listed", type_=JOBS.c.artifacts.type), "stage_durations": durations}
        return update(JOBS).where(_owned_by("claim")).values(self._end("completed") | made | {"step": JOBS.c.steps})

    @cached_property
    def show(self) -> Update:
        """List artifacts of the job of ``claim``, and write its progress."""
        made = {"artifacts": bindparam("listed", type_=JOBS.c.artifacts.type)}
        return update(JOBS).where(_owned_by("claim")).values(made | PROGRESS)

    @cached_property
    def artifacts(self) -> "Select[Any]":
        """Select the artifacts of the job ``number``."""
        return select(JOBS.c.artifacts).where(JOBS.c.seq == bindparam("number"))

    @cached_property
    def still_owned(self) -> "Select[str]":
        """Select those of ``owners`` whose jobs may continue."""
        owners = JOBS.c.owner.in_(bindparam("owners", expanding=True))
        return select(JOBS.c.owner).where(owners, ~JOBS.c.cancel_requested, JOBS.c.deadline_at > Now())

    @cached_property
    def renew(self) -> Update:
        """Renew the lease of ``claim`` and write its progress."""
        lease = {"lease_until": Now() + self._settings.lease_s}
        return update(JOBS).where(JOBS.c.owner == bindparam("claim")).values(PROGRESS | lease)

    @cached_property
    def insert(self) -> Executable:
        """Store new jobs; return them in the order in which they are given."""
        new = {"status": "queued", "created_at": Now(), "deadline_at": Now() + self._settings.job_deadline_s}
        return insert(JOBS).values(new).returning(JOBS, sort_by_parameter_order=True)

    def release(self, owner: str, after_s: float) -> Update:
        """Free the owner's job; it can be claimed ``after_s`` from now."""
        freed = {"status": "queued", "owner": None, "stage": None, "step": 0, "lease_until": Now() + after_s}
        return update(JOBS).where(JOBS.c.owner == owner).values(freed)

    @cached_property
    def revised(self) -> Update:
        """Free the job of ``claim`` with its ``prompt`` or ``error``: any claim may take it to the denoisers now."""
        made: dict[str, Any] = {"revised_prompt": bindparam("prompt"), "prompt_upsampling_error": bindparam("error")}
        durations = {"stage_durations": bindparam("durations", type_=JOBS.c.stage_durations.type)}
        freed = {"owner": None, "stage": None, "lease_until": Now(), "upsampling_pending": False}
        return update(JOBS).where(_owned_by("claim")).values(made | durations | freed)

    def fail(self, outcome: Outcome, condition: ColumnElement[bool]) -> Executable:
        """Fail the jobs that meet a condition; return the first two fields of ``FailedJob``."""
        reason = {"error_code": outcome.code, "error_message": outcome.message[:MAX_MESSAGE_CHARS]}
        end = self._end("failed") | reason
        if outcome == CANCELLED:  # whoever cancels a job knows of its end
            end["webhook_due_at"] = None
        failed = update(JOBS).where(condition).values(end)
        return failed.returning(JOBS.c.id, JOBS.c.request_id)

    def reasons_to_fail(self) -> list[tuple[Outcome, ColumnElement[bool]]]:
        """Return the reasons for which an active job must not be retried, each with its condition."""
        return [
            (CANCELLED, JOBS.c.cancel_requested),
            (DEADLINE, JOBS.c.deadline_at <= Now()),
            (LOST, and_(self._of_model, JOBS.c.attempts >= self._settings.max_attempts)),
        ]

    @cached_property
    def active(self) -> "Select[Any]":
        """Select the fields of ``ActiveJob`` of all jobs that have not ended, in order of arrival."""
        running_s = func.coalesce(Now() - JOBS.c.started_at, 0.0)
        computed: dict[str, ColumnElement[Any]] = {"running_s": running_s, "preview": JOBS.c.artifacts}
        columns = [computed[name] if name in computed else JOBS.c[name] for name in ActiveJob._fields]
        return select(*columns).where(self._of_model, JOBS.c.status.in_(ACTIVE)).order_by(JOBS.c.seq)

    def finished(self) -> "Select[Any]":
        """Select the fields of ``FinishedJob`` of the last completed jobs of every size, so that many small jobs do
        not displace what is known of large ones."""
        wall_s = JOBS.c.completed_at - JOBS.c.started_at
        last = func.lag(JOBS.c.completed_at).over(order_by=JOBS.c.completed_at)
        times = (wall_s.label("wall_s"), func.coalesce(JOBS.c.completed_at - last, wall_s).label("after_last_s"))
        columns = (JOBS.c.cost, JOBS.c.steps, JOBS.c.stage_durations, JOBS.c.completed_at, *times)
        completed = and_(self._of_model, JOBS.c.status == "completed", JOBS.c.started_at.is_not(None))
        newest_first = select(*columns).where(completed).order_by(JOBS.c.completed_at.desc())
        recent = newest_first.limit(RECENT_JOBS).subquery()
        size = [recent.c.cost[field].as_string() for field in SIZE_OF_A_JOB]
        place = func.row_number().over(partition_by=[*size, recent.c.steps], order_by=recent.c.completed_at.desc())
        placed = select(recent, place.label("place")).subquery()
        query = select(*(placed.c[name] for name in FinishedJob._fields)).where(placed.c.place <= SAMPLES_PER_SIZE)
        return query.order_by(placed.c.completed_at.desc()).limit(MOST_SAMPLES)

    def _end(self, status: str) -> dict[str, Any]:
        times = {"completed_at": Now(), "expires_at": Now() + self._settings.retention_s}
        return {"status": status, "owner": None, "stage": None, "webhook_due_at": due_at_the_end()} | times


def page(after: int | None, limit: int, newest_first: bool, filters: ListQuery) -> "Select[Any]":
    """Select up to ``limit`` jobs after the ``seq`` ``after``, in order of arrival or from the newest backwards."""
    order = JOBS.c.seq.desc() if newest_first else JOBS.c.seq
    query = select(JOBS).order_by(order).limit(limit).where(*_conditions(filters))
    if after is not None:
        query = query.where(JOBS.c.seq < after if newest_first else JOBS.c.seq > after)
    return query


def free() -> ColumnElement[bool]:
    """Tell that no runner works on the job: its lease is over, or it was never claimed."""
    return JOBS.c.lease_until <= Now()


def _owned_by(parameter: str) -> ColumnElement[bool]:
    """Tell that the job belongs to the claim that the parameter names, and was not cancelled."""
    return and_(JOBS.c.owner == bindparam(parameter), ~JOBS.c.cancel_requested)


def _conditions(filters: ListQuery) -> Iterator[ColumnElement[bool]]:
    if filters.status is not None:
        yield JOBS.c.status == filters.status
    if filters.created_after is not None:
        yield JOBS.c.created_at >= filters.created_after
    if filters.created_before is not None:
        yield JOBS.c.created_at < filters.created_before
    for name, value in filters.metadata.items():
        yield JOBS.c.metadata[name].as_string() == value
