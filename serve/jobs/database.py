"""Transactions on the job table's database, each a function of a connection.

SQLite lets one connection write at a time, so each process writes from one thread, in order of arrival, and a
transaction never waits for the event loop while it locks the file. Reads run beside the writes on both databases.
"""

import asyncio
import math
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Protocol, TypeVar

from sqlalchemy import Connection, text
from sqlalchemy.exc import InterfaceError, InternalError, OperationalError, ProgrammingError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from serve.errors import DatabaseUnavailable
from serve.jobs.job_schema import ADMISSION_LOCK, is_sqlite, postgresql_engine, sqlite_engine

T = TypeVar("T")
Transaction = Callable[[Connection], T]

OUTAGES = (OperationalError, InterfaceError, InternalError, ProgrammingError, PoolTimeout)
"""What a database that cannot serve raises. The statements are ours, so ``ProgrammingError`` is no fault of theirs: a
pooler says so while its server is away."""
TRANSACTION_TIMEOUT_S = 10.0  # psycopg may take as long again to give up a connection
SQLITE_READERS = 4


class Database(Protocol):
    """Every method raises ``DatabaseUnavailable`` while the database cannot be reached or written."""

    async def read(self, transaction: Transaction[T]) -> T:
        """The result of a transaction that only reads."""
        ...

    async def write(self, transaction: Transaction[T]) -> T:
        """The result of a transaction that writes."""
        ...

    async def write_alone(self, transaction: Transaction[T]) -> T:
        """The same, beside which no other ``write_alone`` of any process runs."""
        ...

    async def close(self) -> None: ...


def open_database(url: str) -> Database:
    """The prepared database at ``url``."""
    return Sqlite(url) if is_sqlite(url) else Postgresql(url)


class Sqlite:
    """A file of this machine."""

    def __init__(self, url: str) -> None:
        self._engine = sqlite_engine(url)
        self._readers = ThreadPoolExecutor(SQLITE_READERS, "jobs_read")
        self._writer = ThreadPoolExecutor(1, "jobs_write")
        self._turn = asyncio.Lock()
        self._failed_at = -math.inf

    async def read(self, transaction: Transaction[T]) -> T:
        def run() -> T:
            with self._engine.connect() as connection:
                return transaction(connection)

        return await _in_thread(self._readers, run)

    async def write(self, transaction: Transaction[T]) -> T:
        """The time limit begins with the turn: a long queue of writes is no outage.

        When a write fails because the database is unavailable, those that wait behind it fail with it, instead of each
        waiting as long.
        """

        def run() -> T:
            with self._engine.begin() as connection:
                connection.exec_driver_sql("BEGIN IMMEDIATE")  # a transaction that reads first may not write later
                return transaction(connection)

        loop = asyncio.get_running_loop()
        arrived_at = loop.time()
        async with self._turn:
            if self._failed_at > arrived_at:
                raise _unavailable()
            try:
                return await _in_thread(self._writer, run)
            except DatabaseUnavailable:
                self._failed_at = loop.time()
                raise

    write_alone = write

    async def close(self) -> None:
        for threads in (self._readers, self._writer):
            await asyncio.to_thread(threads.shutdown)
        self._engine.dispose()


class Postgresql:
    """A server, which arbitrates between transactions."""

    def __init__(self, url: str) -> None:
        self._engine = postgresql_engine(url)

    async def read(self, transaction: Transaction[T]) -> T:
        with _outages():
            async with asyncio.timeout(TRANSACTION_TIMEOUT_S), self._engine.begin() as connection:
                try:
                    return await connection.run_sync(transaction)
                except (InternalError, ProgrammingError):
                    await connection.invalidate()  # another one may lead to a server that takes writes
                    raise

    write = read

    async def write_alone(self, transaction: Transaction[T]) -> T:
        def run(connection: Connection) -> T:
            connection.execute(text(f"SELECT pg_advisory_xact_lock({ADMISSION_LOCK})"))
            return transaction(connection)

        return await self.write(run)

    async def close(self) -> None:
        await self._engine.dispose()


async def _in_thread(threads: Executor, run: Callable[[], T]) -> T:
    with _outages():
        async with asyncio.timeout(TRANSACTION_TIMEOUT_S):
            return await asyncio.get_running_loop().run_in_executor(threads, run)


@contextmanager
def _outages() -> Iterator[None]:
    """Raise what means that the database cannot serve as ``DatabaseUnavailable``."""
    try:
        yield
    except (*OUTAGES, TimeoutError) as error:
        raise _unavailable() from error


def _unavailable() -> DatabaseUnavailable:
    return DatabaseUnavailable("the job table cannot be reached; try again", retry_after_s=5)
