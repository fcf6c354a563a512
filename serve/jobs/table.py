"""The job table: which runner works on which job, and how far it is.

A claim is one compare-and-swap that gives the oldest free job to a runner, under a token and for the length of a
lease. Every later write names the token, so a runner that lost its job can no longer change it. All times are the
database's own.
"""

import secrets
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import Any, TypeVar

from sqlalchemy import (
    ColumnElement,
    Connection,
    CursorResult,
    Executable,
    Row,
    and_,
    bindparam,
    or_,
    select,
    update,
)

from serve.errors import DatabaseUnavailable
from serve.estimates.cost import stored_cost
from serve.estimates.observed_jobs import ActiveJob, FinishedJob
from serve.graph.batching import Batches
from serve.graph.revision import Revision
from serve.graph.stage_names import PROMPT_UPSAMPLER
from serve.jobs import statements
from serve.jobs.columns import JOBS, MAX_MESSAGE_CHARS, Now
from serve.jobs.database import open_database
from serve.jobs.job import (
    ACTIVE,
    CANCELLED,
    ClaimProgress,
    Deleted,
    FailedJob,
    Job,
    JobSettings,
    NewJob,
    Outcome,
    Started,
    StoredArtifact,
    StoredInput,
    preview_among,
    token_of,
)
from serve.jobs.shared_inputs import inputs_with, last_of, without_their_input
from serve.jobs.webhooks.outbox import Outbox
from serve.schema import ListQuery

T = TypeVar("T")


class JobTable:
    """The jobs of one model, in a database that ``migrations.prepare`` has prepared.

    Applications with other checkpoints may share the table: each one claims, counts, and fails for their attempts, only
    the jobs of its own model.

    Every method raises ``DatabaseUnavailable`` while the database cannot be reached or written. ``owner`` is always the
    token of a claim. Times are seconds.

    Args:
        model: whose jobs to work on.

    Attributes:
        outbox: the events of ended jobs that are to be sent.
    """

    def __init__(self, settings: JobSettings, model: str) -> None:
        self._database = open_database(settings.database_url)
        self._settings = settings
        self._statements = statements.Statements(settings, model)
        self.outbox = Outbox(self._database, model)
        self._submissions: Batches[NewJob, Job | None] = Batches(self._store)

    async def close(self) -> None:
        """Close the connections."""
        await self._database.close()

    async def submit(self, new: NewJob) -> Job | None:
        """Store a job and return it; None if the queue is full. A known idempotency key returns the job stored with it.

        Submissions that arrive during a commit share the next one.

        Raises:
            InputGone: the job shares its input with jobs that have been deleted since.
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

    def _admit(self, batch: Sequence[NewJob], connection: Connection) -> list[Job | Exception | None]:
        """Return the jobs of a batch: stored before, stored now, or None where the queue is full.

        In place of one whose input went with its last job, return ``InputGone``.
        """
        names = [new.idempotency_key or number for number, new in enumerate(batch)]
        keys = [new.idempotency_key for new in batch if new.idempotency_key]
        known = _jobs(connection.execute(select(JOBS).where(JOBS.c.idempotency_key.in_(keys)))) if keys else []
        jobs: dict[str | int, Job] = {job.idempotency_key: job for job in known if job.idempotency_key}
        fresh: dict[str | int, NewJob] = {}
        for name, new in zip(names, batch, strict=True):
            if name not in jobs:
                fresh.setdefault(name, new)
        gone = without_their_input(fresh, connection)
        for name in gone:
            del fresh[name]
        room = self._settings.max_queued_jobs - connection.execute(self._statements.queued).scalar_one()
        admitted = dict(islice(fresh.items(), max(0, room)))
        jobs |= dict(zip(admitted, self._insert(list(admitted.values()), connection), strict=True))
        return [gone.get(name) or jobs.get(name) for name in names]

    def _insert(self, batch: Sequence[NewJob], connection: Connection) -> list[Job]:
        """Store jobs in order of arrival."""
        if not batch:
            return []
        rows = [job.row | {"id": secrets.token_hex(10)} for job in batch]
        stored = _jobs(connection.execute(self._statements.insert, rows))
        # The id contains the order of arrival, so that a page can start after it even when its row is gone.
        jobs = [replace(job, id=f"video_{job.seq:012x}{job.id}") for job in stored]
        named = update(JOBS).where(JOBS.c.seq == bindparam("number")).values(id=bindparam("name"))
        connection.execute(named, [{"number": job.seq, "name": job.id} for job in jobs])
        return jobs

    async def get(self, job_id: str) -> Job | None:
        """Return the job; None if it is not in the table."""
        jobs = await self.get_all([job_id])
        return jobs[0] if jobs else None

    async def get_all(self, job_ids: Collection[str]) -> list[Job]:
        """Return those of the jobs that are in the table."""
        return await self._read(select(JOBS).where(JOBS.c.id.in_(job_ids)), _jobs)

    async def page(
        self, after: int | None, limit: int, newest_first: bool, filters: ListQuery | None = None
    ) -> list[Job]:
        """Return up to ``limit`` jobs after the ``seq`` ``after``, in order of arrival or from the newest backwards."""
        return await self._read(statements.page(after, limit, newest_first, filters or ListQuery()), _jobs)

    async def delete(self, job_id: str) -> Deleted | None:
        """Delete a row and return it with its files; None if there is none. The job's runner notices and stops."""
        deleted = await self._delete(JOBS.c.id == job_id)
        return deleted[0] if deleted else None

    async def cancel(self, job_id: str) -> list[FailedJob]:
        """Fail a job that is not claimed; ask the runner of a claimed one to do so. Return the job if it failed."""
        active = and_(JOBS.c.id == job_id, JOBS.c.status.in_(ACTIVE))

        def transaction(connection: Connection) -> list[FailedJob]:
            failed = self._fail_where(CANCELLED, and_(active, statements.free()), connection)
            if not failed:
                connection.execute(update(JOBS).where(active).values(cancel_requested=True))
            return failed

        return await self._database.write(transaction)

    async def claim(self) -> Job | None:
        """Claim the oldest free job under a new token; None if there is none or enough wait before the denoisers.

        As many jobs may wait there as are denoised: enough to keep every denoiser busy, and no more, so that jobs
        start in order of arrival whichever runner drives them.
        """
        token = {"token": secrets.token_hex(16)}
        # Alone: the waiting jobs are counted before the claim, and another runner's claim must not change the count.
        return await self._database.write_alone(
            lambda connection: _first_job(connection.execute(self._statements.claim, token))
        )

    async def start(self, owner: str) -> Started | None:
        """Count one more started denoise; None if the job is no longer the owner's or may not start again."""
        row = await self._write(self._statements.start, CursorResult.one_or_none, claim=owner)
        return None if row is None else Started._make(row)

    async def revise(self, owner: str, revision: Revision) -> bool:
        """Free the job for a claim that takes it to the denoisers, with what became of its prompt.

        False if it is no longer the owner's.
        """
        error = revision.error and revision.error[:MAX_MESSAGE_CHARS]
        made = {"prompt": revision.prompt, "error": error, "durations": {PROMPT_UPSAMPLER: revision.seconds}}
        return await self._write(self._statements.revised, lambda rows: rows.rowcount == 1, claim=owner, **made)

    async def still_owned(self, owners: Iterable[str]) -> set[str]:
        """Return those owners whose jobs are still theirs and may continue."""
        return await self._read(self._statements.still_owned, lambda rows: set(rows.scalars()), owners=list(owners))

    async def renew(self, progress: Mapping[str, ClaimProgress], owners: Iterable[str] = ()) -> set[str]:
        """Write progress by owner and renew their leases; return what ``still_owned`` does for ``owners``."""
        rows = [{"claim": owner, "at_stage": now.stage, "at_step": now.step} for owner, now in progress.items()]

        def transaction(connection: Connection) -> set[str]:
            connection.execute(self._statements.renew, rows).close()
            return set(connection.execute(self._statements.still_owned, {"owners": list(owners)}).scalars())

        return await self._database.write(transaction)

    async def show(self, owner: str, preview: StoredArtifact, progress: ClaimProgress) -> bool:
        """List a preview as all that a job has made so far, with the progress at which it is shown.

        Args:
            preview: its file exists.

        Returns:
            False if the job is no longer the owner's.
        """
        shown = {"listed": [preview.stored], "at_stage": progress.stage, "at_step": progress.step}
        return await self._write(self._statements.show, lambda rows: rows.rowcount == 1, claim=owner, **shown)

    async def complete(
        self, job: Job, artifacts: Sequence[StoredArtifact], stage_durations: Mapping[str, float]
    ) -> bool:
        """Complete a claimed job; False if it no longer belongs to the claim.

        Also True if an earlier call with the same artifacts did so and its answer was lost.

        Args:
            job: as ``claim`` returned it.
            artifacts: at least one. Their files exist, and their names contain the claim's token.
        """
        listed = [artifact.stored for artifact in artifacts]
        completed = {"claim": job.owner, "listed": listed, "durations": dict(stage_durations)}

        def transaction(connection: Connection) -> bool:
            if connection.execute(self._statements.complete, completed).rowcount == 1:
                return True
            return bool(connection.execute(self._statements.artifacts, {"number": job.seq}).scalar() == listed)

        return await self._database.write(transaction)

    async def fail(self, owner: str, outcome: Outcome) -> list[FailedJob]:
        """Fail the owner's job and return it; none if it is no longer the owner's."""
        return await self._database.write(partial(self._fail_where, outcome, JOBS.c.owner == owner))

    async def release(self, owner: str, after_s: float = 0) -> bool:
        """Free the job for any claim ``after_s`` from now. False if it is no longer the owner's."""
        return await self._write(self._statements.release(owner, after_s), lambda rows: rows.rowcount == 1)

    async def fail_expired(self, owner: str | None = None) -> list[FailedJob]:
        """Fail those jobs of one owner, or of none, that were cancelled or are past their deadline or retry limit."""
        whose = statements.free() if owner is None else JOBS.c.owner == owner
        reasons = self._statements.reasons_to_fail()
        candidates = and_(JOBS.c.status.in_(ACTIVE), whose)

        def transaction(connection: Connection) -> list[FailedJob]:
            return [
                job
                for outcome, applies in reasons
                for job in self._fail_where(outcome, and_(candidates, applies), connection)
            ]

        # Read first: a write that finds nothing would lock the database all the same.
        expired = select(JOBS.c.seq).where(candidates, or_(*(applies for _, applies in reasons))).limit(1)
        if await self._read(expired, CursorResult.first) is None:
            return []
        return await self._database.write(transaction)

    async def queued(self) -> int:
        """Return how many jobs wait."""
        return await self._read(self._statements.queued, CursorResult.scalar_one)

    async def may_claim(self) -> bool:
        """Tell whether a claim would get a job."""
        return await self._read(self._statements.next, CursorResult.first) is not None

    async def active(self) -> list[ActiveJob]:
        """Return the jobs that have not ended, in order of arrival."""

        def jobs(rows: CursorResult[Any]) -> list[ActiveJob]:
            return [_active_job(ActiveJob._make(row)) for row in rows]

        return await self._read(self._statements.active, jobs)

    async def finished(self) -> list[FinishedJob]:
        """Return the last completed jobs of every size, the newest first."""
        jobs = await self._read(self._statements.finished(), lambda rows: [FinishedJob._make(row) for row in rows])
        return [job._replace(cost=cost) for job in jobs if (cost := stored_cost(job.cost))]

    async def delete_past_retention(self) -> list[Deleted]:
        """Delete the rows whose retention is over and return them; the caller removes their files."""
        return await self._delete(JOBS.c.expires_at <= Now())

    async def _delete(self, condition: ColumnElement[bool]) -> list[Deleted]:
        """Delete rows. An input belongs to the last of its jobs.

        Alone, so that no submission can name an input between the count of its jobs and the end of the transaction.
        After that none can: a job shares the input of one in the table, or has a new file.
        """

        def transaction(connection: Connection) -> list[Deleted]:
            jobs = _jobs(connection.execute(JOBS.delete().where(condition).returning(JOBS)))
            used = inputs_with({job.input_sha256 for job in jobs}, connection)
            return [Deleted(job, [*job.files, *last_of(job, used)]) for job in jobs]

        return await self._database.write_alone(transaction)

    async def input_with(self, sha256: str) -> StoredInput | None:
        """Return an input that has these bytes; None if no job has one."""
        query = select(JOBS.c.input_reference).where(JOBS.c.input_sha256 == sha256).order_by(JOBS.c.seq.desc()).limit(1)
        stored = await self._read(query, CursorResult.scalar)
        return None if stored is None else StoredInput(**stored)

    async def inputs_in_use(self) -> set[str]:
        """Return the files of all inputs."""
        query = select(JOBS.c.input_reference).where(JOBS.c.input_sha256.is_not(None))
        return await self._read(query, lambda rows: {stored["file"] for stored in rows.scalars()})

    async def tokens_in_use(self) -> set[str]:
        """Return the tokens of all claims whose files are in use: those that a job lists, and of jobs at work."""
        listed = select(JOBS.c.artifacts).where(JOBS.c.artifacts.is_not(None))
        claims = select(JOBS.c.owner).where(JOBS.c.owner.is_not(None))

        def transaction(connection: Connection) -> set[str]:
            # The claims first: a job that completes between the two queries is then in one of them at least.
            tokens = set(connection.execute(claims).scalars())
            artifacts = connection.execute(listed).scalars()
            return tokens | {token_of(artifact["file"]) for stored in artifacts for artifact in stored or ()}

        return await self._database.read(transaction)

    def _fail_where(self, outcome: Outcome, condition: ColumnElement[bool], connection: Connection) -> list[FailedJob]:
        rows = connection.execute(self._statements.fail(outcome, condition))
        return [FailedJob(row.id, row.request_id, outcome) for row in rows]

    async def _read(self, query: Executable, result: Callable[[CursorResult[Any]], T], **parameters: Any) -> T:
        return await self._database.read(lambda connection: result(connection.execute(query, parameters)))

    async def _write(self, statement: Executable, result: Callable[[CursorResult[Any]], T], **parameters: Any) -> T:
        return await self._database.write(lambda connection: result(connection.execute(statement, parameters)))


def _first_job(rows: CursorResult[Any]) -> Job | None:
    row = rows.one_or_none()
    return None if row is None else _job(row)


def _jobs(rows: CursorResult[Any]) -> list[Job]:
    return [_job(row) for row in rows]


def _active_job(job: ActiveJob) -> ActiveJob:
    return job._replace(cost=stored_cost(job.cost), preview=preview_among(_artifacts(job.preview)))


def _artifacts(listed: Any) -> list[StoredArtifact]:
    return [StoredArtifact(**artifact) for artifact in listed or ()]


def _job(row: Row[Any]) -> Job:
    fields = dict(row._mapping)
    artifacts = _artifacts(fields.pop("artifacts"))
    reference = fields.pop("input_reference")
    return Job(**fields, artifacts=artifacts, input_reference=reference and StoredInput(**reference))
