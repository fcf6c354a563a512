"""The job table: who works on what, and how far it is.

A claim is one compare-and-swap that gives the oldest free job to a runner under a token and for the length of a
lease. Every later write names the token, so a runner that lost its job can no longer change it. All times are the
database's own.
"""

import secrets
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import islice
from typing import Any, NamedTuple, TypeVar

from sqlalchemy import (
    ColumnElement,
    Connection,
    CursorResult,
    Executable,
    Row,
    Select,
    Update,
    and_,
    bindparam,
    func,
    insert,
    or_,
    select,
    update,
)

from serve.errors import DatabaseUnavailable
from serve.graph.batching import Batches
from serve.graph.stage_names import DENOISER
from serve.jobs.database import open_database
from serve.jobs.job_schema import JOBS, MAX_MESSAGE_CHARS, Job, Now
from serve.schema import ListQuery

T = TypeVar("T")

ACTIVE = ("queued", "in_progress")
RECENT_JOBS = 5000  # finished ones, among which time to come is estimated by
SAMPLES_PER_SIZE = 5  # the last of each size and number of steps, and no more
MOST_SAMPLES = 200


@dataclass(frozen=True)
class JobSettings:
    """How jobs are kept.

    Attributes:
        database_url: SQLite or PostgreSQL, as SQLAlchemy writes it.
        lease_s: a runner that is not heard of for so long has lost its jobs.
        max_attempts: times that a job's denoise may begin.
        max_queued_jobs: more are refused.
        job_deadline_s: a job that has not ended so long after its creation fails.
        retention_s: record and files of an ended job are kept for so long.
    """

    database_url: str
    lease_s: float
    max_attempts: int
    max_queued_jobs: int
    job_deadline_s: float
    retention_s: float


class Cost(NamedTuple):
    """What a job costs.

    Attributes:
        model: the served model and its device.
        mode: label of the approximation.
        passes: forward passes of a step.
        text, step, decode: operations of the text tower, of one step and of both decoders.
    """

    model: str
    mode: str
    passes: int
    text: float
    step: float
    decode: float


class NewJob(NamedTuple):
    """What a client asked for; see ``Job``."""

    model: str
    params: dict[str, Any]
    cost: dict[str, Any]
    steps: int
    fingerprint: str | None = None
    seconds: str | None = None
    metadata: dict[str, str] | None = None
    idempotency_key: str | None = None
    request_id: str | None = None


class Started(NamedTuple):
    """A denoise that has begun: the count of them, and the seconds since the job was stored."""

    attempts: int
    waited_s: float


class Progress(NamedTuple):
    """How far a claimed job is, as its runner knows."""

    stage: str | None = None
    step: int = 0


class ActiveJob(NamedTuple):
    """What estimates and events need of a job that has not ended."""

    seq: int
    status: str
    stage: str | None
    step: int
    steps: int
    cost: Cost | None
    running_s: float  # since its denoise began
    attempts: int = 0
    id: str = ""


class FinishedJob(NamedTuple):
    """What an estimate needs of a job that has completed."""

    cost: Cost
    steps: int
    stage_durations: dict[str, float]
    wall_s: float  # since its denoise began
    after_last_s: float  # since the job completed that did so before this one


class Outcome(NamedTuple):
    """How a job ended badly."""

    code: str
    message: str


CANCELLED = Outcome("cancelled", "the job was cancelled")
DEADLINE = Outcome("deadline_exceeded", "the job did not end before its deadline")
LOST = Outcome("attempts_exhausted", "the processes that worked on this job died too often")


class FailedJob(NamedTuple):
    """A job that has ended badly, and why."""

    id: str
    request_id: str | None
    outcome: Outcome


class JobTable:
    """All of the SQL, over a database that ``prepare`` has seen.

    Applications with other checkpoints may share the table: a job is claimed, counted and failed for its attempts by
    those of its own model alone.

    Every method raises ``DatabaseUnavailable`` while the database cannot be reached or written.

    Args:
        model: whose jobs to work on.
    """

    def __init__(self, settings: JobSettings, model: str) -> None:
        self._database = open_database(settings.database_url)
        self._settings = settings
        self._model = model
        self._submissions: Batches[NewJob, Job | None] = Batches(self._store)

    async def close(self) -> None:
        await self._database.close()

    async def submit(self, new: NewJob) -> Job | None:
        """Store a job; None if the queue is full. A known idempotency key gives the job that it made.

        Submissions that arrive during a commit share the next one.
        """
        return await self._submissions(new)

    async def _store(self, batch: Sequence[NewJob]) -> Sequence[Job | Exception | None]:
        try:
            return await self._database.write_alone(partial(self._admit, batch))
        except DatabaseUnavailable:
            raise
        except Exception as error:  # a submission that cannot be stored must not fail those beside it
            if len(batch) == 1:
                return [error]
            return [result for new in batch for result in await self._store([new])]

    def _admit(self, batch: Sequence[NewJob], connection: Connection) -> list[Job | None]:
        """The jobs of a batch: stored before, stored now, or None where the queue is full."""
        names = [new.idempotency_key or number for number, new in enumerate(batch)]
        keys = [new.idempotency_key for new in batch if new.idempotency_key]
        known = _jobs(connection.execute(select(JOBS).where(JOBS.c.idempotency_key.in_(keys)))) if keys else []
        jobs: dict[str | int, Job] = {job.idempotency_key: job for job in known if job.idempotency_key}
        fresh: dict[str | int, NewJob] = {}
        for name, new in zip(names, batch, strict=True):
            if name not in jobs:
                fresh.setdefault(name, new)
        room = self._settings.max_queued_jobs - connection.execute(self._queued).scalar_one()
        admitted = dict(islice(fresh.items(), max(0, room)))
        jobs |= dict(zip(admitted, _insert(list(admitted.values()), self._settings, connection), strict=True))
        return [jobs.get(name) for name in names]

    async def get(self, job_id: str) -> Job | None:
        jobs = await self.get_all([job_id])
        return jobs[0] if jobs else None

    async def get_all(self, job_ids: Collection[str]) -> list[Job]:
        """Those jobs that are in the table."""
        return await self._read(select(JOBS).where(JOBS.c.id.in_(job_ids)), _jobs)

    async def page(
        self, after: int | None, limit: int, newest_first: bool, filters: ListQuery | None = None
    ) -> list[Job]:
        """Up to ``limit`` jobs behind the ``seq`` ``after`` in order of arrival, or from the newest backwards."""
        order = JOBS.c.seq.desc() if newest_first else JOBS.c.seq
        query = select(JOBS).order_by(order).limit(limit).where(*_conditions(filters or ListQuery()))
        if after is not None:
            query = query.where(JOBS.c.seq < after if newest_first else JOBS.c.seq > after)
        return await self._read(query, _jobs)

    async def delete(self, job_id: str) -> Job | None:
        """Take the row away; its runner notices and stops. None if there is none."""
        return await self._write(JOBS.delete().where(JOBS.c.id == job_id).returning(JOBS), _first_job)

    async def cancel(self, job_id: str) -> list[FailedJob]:
        """Fail a job that nobody works on; ask the runner of one that somebody does. The job if it failed."""
        active = and_(JOBS.c.id == job_id, JOBS.c.status.in_(ACTIVE))

        def transaction(connection: Connection) -> list[FailedJob]:
            failed = self._fail_where(CANCELLED, and_(active, _free()), connection)
            if not failed:
                connection.execute(update(JOBS).where(active).values(cancel_requested=True))
            return failed

        return await self._database.write(transaction)

    async def claim(self) -> Job | None:
        """The oldest free job, under a new token; None if there is none or enough wait before the denoisers.

        As many jobs may wait there as are denoised: enough to keep every denoiser busy, and no more, so that jobs
        start in order of arrival whoever drives them.
        """
        token = {"token": secrets.token_hex(16)}
        # Alone: what waits is counted before the claim, which another runner's must not change meanwhile.
        return await self._database.write_alone(lambda connection: _first_job(connection.execute(self._claim, token)))

    async def start(self, owner: str) -> Started | None:
        """Count one more begun denoise; None if the job is no longer the owner's or may not begin again."""
        row = await self._write(self._start, CursorResult.one_or_none, holder=owner)
        return None if row is None else Started._make(row)

    async def kept(self, owners: Iterable[str]) -> set[str]:
        """Those owners whose jobs are still theirs to work on."""
        return await self._read(self._kept, lambda rows: set(rows.scalars()), owners=list(owners))

    async def renew(self, held: dict[str, Progress], owners: Iterable[str] = ()) -> set[str]:
        """Write progress by owner, and hold the leases for their length again; what ``kept`` says of ``owners``."""
        rows = [{"holder": owner, "at_stage": now.stage, "at_step": now.step} for owner, now in held.items()]

        def transaction(connection: Connection) -> set[str]:
            connection.execute(self._renewal, rows).close()
            return set(connection.execute(self._kept, {"owners": list(owners)}).scalars())

        return await self._database.write(transaction)

    async def complete(self, owner: str, media: str, media_bytes: int, stage_durations: dict[str, float]) -> bool:
        """End the owner's job well; False if it is no longer the owner's.

        True as well if that was done already, by a write whose answer was lost.
        """
        done = {"holder": owner, "name": media, "size": media_bytes, "durations": stage_durations}
        before = select(JOBS.c.seq).where(JOBS.c.media == media)

        def transaction(connection: Connection) -> bool:
            if connection.execute(self._completion, done).rowcount == 1:
                return True
            return connection.execute(before).first() is not None

        return await self._database.write(transaction)

    async def fail(self, owner: str, outcome: Outcome) -> list[FailedJob]:
        """End the owner's job badly. The job; none if it is no longer the owner's."""
        return await self._database.write(partial(self._fail_where, outcome, JOBS.c.owner == owner))

    async def release(self, owner: str, after_s: float = 0) -> bool:
        """Give the job back; anybody may claim it ``after_s`` from now. False if it is no longer the owner's."""
        free = {"status": "queued", "owner": None, "stage": None, "step": 0, "lease_until": Now() + after_s}
        release = update(JOBS).where(JOBS.c.owner == owner).values(free)
        return await self._write(release, lambda rows: rows.rowcount == 1)

    async def settle(self, owner: str | None = None) -> list[FailedJob]:
        """Fail those jobs, of one owner or of none, that may not run again; these jobs."""
        whose = _free() if owner is None else JOBS.c.owner == owner
        reasons = [
            (CANCELLED, JOBS.c.cancel_requested),
            (DEADLINE, JOBS.c.deadline_at <= Now()),
            (LOST, and_(JOBS.c.model == self._model, JOBS.c.attempts >= self._settings.max_attempts)),
        ]
        candidates = and_(JOBS.c.status.in_(ACTIVE), whose)

        def transaction(connection: Connection) -> list[FailedJob]:
            return [
                job
                for outcome, applies in reasons
                for job in self._fail_where(outcome, and_(candidates, applies), connection)
            ]

        # Looked for first: a write that finds nothing would lock the database all the same.
        over = select(JOBS.c.seq).where(candidates, or_(*(applies for _, applies in reasons))).limit(1)
        if await self._read(over, CursorResult.first) is None:
            return []
        return await self._database.write(transaction)

    async def queued(self) -> int:
        return await self._read(self._queued, CursorResult.scalar_one)

    async def may_claim(self) -> bool:
        """Whether a claim would get a job."""
        return await self._read(self._next, CursorResult.first) is not None

    async def active(self) -> list[ActiveJob]:
        """The jobs that have not ended, in order of arrival."""
        running_s = func.coalesce(Now() - JOBS.c.started_at, 0.0)
        computed = {"running_s": running_s}
        columns = [computed[name] if name in computed else JOBS.c[name] for name in ActiveJob._fields]
        ours = and_(JOBS.c.model == self._model, JOBS.c.status.in_(ACTIVE))
        query = select(*columns).where(ours).order_by(JOBS.c.seq)

        def jobs(rows: CursorResult[Any]) -> list[ActiveJob]:
            return [job._replace(cost=cost_of_row(job.cost)) for job in map(ActiveJob._make, rows)]

        return await self._read(query, jobs)

    async def finished(self) -> list[FinishedJob]:
        """The last completed jobs of every size: many small ones do not push out what is known of large ones."""
        wall_s = JOBS.c.completed_at - JOBS.c.started_at
        last = func.lag(JOBS.c.completed_at).over(order_by=JOBS.c.completed_at)
        times = (wall_s.label("wall_s"), func.coalesce(JOBS.c.completed_at - last, wall_s).label("after_last_s"))
        kept = (JOBS.c.cost, JOBS.c.steps, JOBS.c.stage_durations, JOBS.c.completed_at, *times)
        done = and_(JOBS.c.status == "completed", JOBS.c.started_at.is_not(None))
        complete = and_(JOBS.c.model == self._model, done)
        recent = select(*kept).where(complete).order_by(JOBS.c.completed_at.desc()).limit(RECENT_JOBS).subquery()
        size = [recent.c.cost[field].as_string() for field in ("model", "mode", "passes", "decode")]
        place = func.row_number().over(partition_by=[*size, recent.c.steps], order_by=recent.c.completed_at.desc())
        placed = select(recent, place.label("place")).subquery()
        query = select(*(placed.c[name] for name in FinishedJob._fields)).where(placed.c.place <= SAMPLES_PER_SIZE)
        newest = query.order_by(placed.c.completed_at.desc()).limit(MOST_SAMPLES)
        jobs = await self._read(newest, lambda rows: [FinishedJob._make(row) for row in rows])
        return [job._replace(cost=cost) for job in jobs if (cost := cost_of_row(job.cost))]

    async def expire(self) -> list[Job]:
        """Take the rows away whose time is over; their files are the caller's to remove."""
        expired = JOBS.delete().where(JOBS.c.expires_at <= Now()).returning(JOBS)
        return await self._write(expired, _jobs)

    async def media(self) -> set[str]:
        """The tokens with which all files in use begin: those of finished jobs, and of claims that may yet finish."""
        finished = select(JOBS.c.media).where(JOBS.c.media.is_not(None))
        held = select(JOBS.c.owner).where(JOBS.c.owner.is_not(None))
        names = await self._read(finished.union_all(held), lambda rows: list(rows.scalars()))
        return {name.rpartition("/")[2] for name in names}

    # Statements that are executed several times a second; to put one together takes longer than to execute it.

    @cached_property
    def _queued(self) -> "Select[int]":
        return select(func.count()).where(JOBS.c.model == self._model, JOBS.c.status == "queued")

    @cached_property
    def _next(self) -> "Select[int]":
        """The oldest free job, if another one may wait before the denoisers."""
        may_run = and_(JOBS.c.model == self._model, ~JOBS.c.cancel_requested, JOBS.c.deadline_at > Now())
        unspent = JOBS.c.attempts < self._settings.max_attempts
        claimable = and_(JOBS.c.status.in_(ACTIVE), _free(), may_run, unspent)
        held = JOBS.alias("held")
        live = and_(held.c.model == self._model, held.c.lease_until > Now())
        waiting = select(func.count()).where(live, held.c.owner.is_not(None), held.c.status == "queued")
        denoising = select(func.count()).where(live, held.c.status == "in_progress", held.c.stage == DENOISER)
        room = or_(waiting.scalar_subquery() < 1, waiting.scalar_subquery() < denoising.scalar_subquery())
        return select(JOBS.c.seq).where(claimable, room).order_by(JOBS.c.seq).limit(1)

    @cached_property
    def _claim(self) -> Any:
        lease = {"owner": bindparam("token"), "lease_until": Now() + self._settings.lease_s}
        return (
            update(JOBS)
            .where(JOBS.c.seq == self._next.correlate(None).scalar_subquery())
            .values({"status": "queued", "stage": None, "step": 0} | lease)
            .returning(JOBS)
        )

    @cached_property
    def _start(self) -> Any:
        return (
            update(JOBS)
            .where(_held_by("holder"), JOBS.c.attempts < self._settings.max_attempts)
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
    def _completion(self) -> Update:
        files: dict[str, Any] = {"media": bindparam("name"), "media_bytes": bindparam("size")}
        done = {"step": JOBS.c.steps, "stage_durations": bindparam("durations", type_=JOBS.c.stage_durations.type)}
        return update(JOBS).where(_held_by("holder")).values(self._ended("completed") | files | done)

    @cached_property
    def _kept(self) -> "Select[str]":
        return select(JOBS.c.owner).where(
            JOBS.c.owner.in_(bindparam("owners", expanding=True)), ~JOBS.c.cancel_requested, JOBS.c.deadline_at > Now()
        )

    @cached_property
    def _renewal(self) -> Update:
        return (
            update(JOBS)
            .where(JOBS.c.owner == bindparam("holder"))
            .values(lease_until=Now() + self._settings.lease_s, stage=bindparam("at_stage"), step=bindparam("at_step"))
        )

    def _ended(self, status: str) -> dict[str, Any]:
        return {
            "status": status,
            "owner": None,
            "stage": None,
            "completed_at": Now(),
            "expires_at": Now() + self._settings.retention_s,
        }

    def _fail_where(self, outcome: Outcome, condition: ColumnElement[bool], connection: Connection) -> list[FailedJob]:
        reason = {"error_code": outcome.code, "error_message": outcome.message[:MAX_MESSAGE_CHARS]}
        failed = update(JOBS).where(condition).values(self._ended("failed") | reason)
        rows = connection.execute(failed.returning(JOBS.c.id, JOBS.c.request_id))
        return [FailedJob(row.id, row.request_id, outcome) for row in rows]

    async def _read(self, query: Executable, result: Callable[[CursorResult[Any]], T], **parameters: Any) -> T:
        return await self._database.read(lambda connection: result(connection.execute(query, parameters)))

    async def _write(self, statement: Executable, result: Callable[[CursorResult[Any]], T], **parameters: Any) -> T:
        return await self._database.write(lambda connection: result(connection.execute(statement, parameters)))


def _conditions(filters: ListQuery) -> Iterator[ColumnElement[bool]]:
    if filters.status is not None:
        yield JOBS.c.status == filters.status
    if filters.created_after is not None:
        yield JOBS.c.created_at >= filters.created_after
    if filters.created_before is not None:
        yield JOBS.c.created_at < filters.created_before
    for name, value in filters.metadata.items():
        yield JOBS.c.metadata[name].as_string() == value


def _held_by(owner: str) -> ColumnElement[bool]:
    """That the job is the owner's, who is named by this parameter, and was not cancelled."""
    return and_(JOBS.c.owner == bindparam(owner), ~JOBS.c.cancel_requested)


def _free() -> ColumnElement[bool]:
    return JOBS.c.lease_until <= Now()


def cost_of_row(cost: Any) -> Cost | None:
    """The column ``cost``."""
    return None if cost is None else Cost(**cost)


def _insert(batch: Sequence[NewJob], settings: JobSettings, connection: Connection) -> list[Job]:
    """Store jobs in order of arrival."""
    if not batch:
        return []
    new = insert(JOBS).values(status="queued", created_at=Now(), deadline_at=Now() + settings.job_deadline_s)
    rows = connection.execute(
        new.returning(JOBS, sort_by_parameter_order=True),
        [job._asdict() | {"id": secrets.token_hex(10)} for job in batch],
    )
    # The id says when the job came, so that a page can begin after it even when its row is gone.
    jobs = [replace(job, id=f"video_{job.seq:012x}{job.id}") for job in _jobs(rows)]
    named = update(JOBS).where(JOBS.c.seq == bindparam("number")).values(id=bindparam("name"))
    connection.execute(named, [{"number": job.seq, "name": job.id} for job in jobs])
    return jobs


def _first_job(rows: CursorResult[Any]) -> Job | None:
    row = rows.one_or_none()
    return None if row is None else _job(row)


def _jobs(rows: CursorResult[Any]) -> list[Job]:
    return [_job(row) for row in rows]


def _job(row: Row[Any]) -> Job:
    return Job(**row._mapping)
