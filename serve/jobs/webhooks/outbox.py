"""The events that are to be sent: columns of the job table, written in the transaction that ends a job.

``webhook_due_at`` is when the next attempt is due, and None where there is none. An attempt first moves it by a lease,
so that no other process makes the same one; its number is the token of every later write.
"""

from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, and_, case, func, select, update

from serve.jobs.columns import JOBS, Now
from serve.jobs.database import Database

LEASE_S = 60.0  # longer than an attempt takes


class Delivery(NamedTuple):
    """One attempt to send the event of an ended job.

    Attributes:
        attempt: its number, from 1.
        age_s: seconds since the job ended.
        remaining_s: seconds until its record is deleted.
    """

    seq: int
    id: str
    request_id: str | None
    status: str
    url: str
    completed_at: float
    attempt: int
    age_s: float
    remaining_s: float


def due_at_the_end() -> ColumnElement[Any]:
    """When the event of a job that ends now is due: at once, or never for a job without a URL or that is cancelled."""
    return case((and_(JOBS.c.webhook_url.is_not(None), ~JOBS.c.cancel_requested), Now()), else_=None)


def _is_due() -> ColumnElement[bool]:
    return JOBS.c.webhook_due_at <= Now()


class Outbox:
    """The events of one model's jobs. Every method raises ``DatabaseUnavailable``, as those of the table do."""

    def __init__(self, database: Database, model: str) -> None:
        self._database = database
        self._of_model = JOBS.c.model == model

    async def wait_s(self) -> float | None:
        """Return the seconds until the next attempt is due; None if there is none."""
        query = select(func.min(JOBS.c.webhook_due_at) - Now()).where(
            self._of_model, JOBS.c.webhook_due_at.is_not(None)
        )
        return await self._database.read(lambda connection: connection.execute(query).scalar())

    async def claim(self, limit: int, seq: int | None = None) -> list[Delivery]:
        """Start up to ``limit`` of the attempts that are due, or that of the job ``seq`` if it is due."""
        due = and_(self._of_model, _is_due(), *([] if seq is None else [JOBS.c.seq == seq]))
        numbers = select(JOBS.c.seq).where(due).order_by(JOBS.c.webhook_due_at).limit(limit).correlate(None)
        claimed = (
            update(JOBS)
            # The second condition is for PostgreSQL, where another process may have claimed a row meanwhile.
            .where(JOBS.c.seq.in_(numbers), _is_due())
            .values(webhook_due_at=Now() + LEASE_S, webhook_attempts=JOBS.c.webhook_attempts + 1)
            .returning(
                *(JOBS.c.seq, JOBS.c.id, JOBS.c.request_id, JOBS.c.status, JOBS.c.webhook_url, JOBS.c.completed_at),
                *(JOBS.c.webhook_attempts, Now() - JOBS.c.completed_at, JOBS.c.expires_at - Now()),
            )
        )
        return await self._database.write(lambda connection: [Delivery(*row) for row in connection.execute(claimed)])

    async def finish(self, delivery: Delivery) -> None:
        """Make no further attempt."""
        await self._set(delivery, None)

    async def retry(self, delivery: Delivery, after_s: float) -> None:
        """Make the next attempt ``after_s`` from now."""
        await self._set(delivery, Now() + after_s)

    async def _set(self, delivery: Delivery, due: ColumnElement[float] | None) -> None:
        own = and_(JOBS.c.seq == delivery.seq, JOBS.c.webhook_attempts == delivery.attempt)
        statement = update(JOBS).where(own).values(webhook_due_at=due)
        await self._database.write(lambda connection: connection.execute(statement).close())
