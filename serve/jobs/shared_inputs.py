"""Which files of inputs the rows of the job table name: several jobs may start from one file."""

from collections.abc import Collection, Mapping

from sqlalchemy import Connection, select

from serve.jobs.columns import JOBS
from serve.jobs.job import InputGone, Job, NewJob


def inputs_with(hashes: Collection[str | None], connection: Connection) -> set[str]:
    """Return the files of all inputs with these hashes."""
    if not any(hashes):
        return set()
    rows = connection.execute(select(JOBS.c.input_reference).where(JOBS.c.input_sha256.in_(hashes)))
    return {stored["file"] for stored in rows.scalars()}


def last_of(job: Job, used: set[str]) -> list[str]:
    """Return the input of a deleted job if nothing uses it any more; from now on it counts as used."""
    if job.input_reference is None or job.input_reference.file in used:
        return []
    used.add(job.input_reference.file)
    return [job.input_reference.file]


def without_their_input(fresh: Mapping[str | int, NewJob], connection: Connection) -> dict[str | int, InputGone]:
    """Return those of the new jobs that share the input of jobs that are no longer in the table."""
    sharing = {name: new for name, new in fresh.items() if new.shares_input}
    used = inputs_with({new.input_sha256 for new in sharing.values()}, connection)
    files = {name: new.input_reference.file for name, new in sharing.items() if new.input_reference}
    return {name: InputGone() for name, file in files.items() if file not in used}
