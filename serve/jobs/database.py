"""The job table's two kinds of database, and transactions on them, each a function of a connection.

SQLite lets one connection write at a time, so each process writes from one thread, in order of arrival, and a
transaction never waits for the event loop while it locks the file. Reads run beside the writes on both databases.
"""

import asyncio
import math
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

from sqlalchemy import Connection, Engine, create_engine, event, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import InterfaceError, InternalError, OperationalError, ProgrammingError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from serve.errors import DatabaseUnavailable

T = TypeVar("T")
Transaction = Callable[[Connection], T]

OUTAGES = (OperationalError, InterfaceError, InternalError, ProgrammingError, PoolTimeout)
"""What a database that cannot serve raises. The statements are ours, so a ``ProgrammingError`` does not mean that one
is wrong: a pooler raises it while its server is away."""
TRANSACTION_TIMEOUT_S = 10.0  # psycopg may take as long again to give up a connection
SQLITE_READERS = 4
SCHEMA_LOCK = 0xC0503  # PostgreSQL's advisory locks go by number
ADMISSION_LOCK = SCHEMA_LOCK + 1
BUSY_TIMEOUT_S = 5
NETWORK_TIMEOUT_S = 10  # a PostgreSQL host that acknowledges nothing for this long has vanished


class Database(Protocol):
    """Where transactions run. Every method raises ``DatabaseUnavailable`` while the database is out of service."""

    async def read(self, transaction: Transaction[T]) -> T:
        """Return the result of a transaction that only reads."""
        ...

    async def write(self, transaction: Transaction[T]) -> T:
        """Return the result of a transaction that writes."""
        ...

    async def write_alone(self, transaction: Transaction[T]) -> T:
        """Write while no other ``write_alone`` of any process runs."""
        ...

    async def close(self) -> None:
        """Close the connections."""
        ...


def open_database(url: str) -> Database:
    """Open the database at ``url``, which ``migrations.prepare`` has prepared."""
    return Sqlite(url) if is_sqlite(url) else Postgresql(url)


class Sqlite:
    """A file of this machine."""

    def __init__(self, url: str) -> None:
        self._engine = sync_engine(url)
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
        """Write in order of arrival. The time limit of a write starts with its turn: a long queue is no outage.

        When a write fails because the database is unavailable, the writes that wait for it fail as well, instead of
        each waiting as long.
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
    """A server, which isolates transactions from each other."""

    def __init__(self, url: str) -> None:
        self._engine = _postgresql_engine(url)

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
    """Raise the errors of a database that cannot serve as ``DatabaseUnavailable``."""
    try:
        yield
    except (*OUTAGES, TimeoutError) as error:
        raise _unavailable() from error


def _unavailable() -> DatabaseUnavailable:
    return DatabaseUnavailable("the job table cannot be reached; try again", retry_after_s=5)


def is_sqlite(database_url: str) -> bool:
    """Tell whether the URL names an SQLite file."""
    return make_url(database_url).get_backend_name() == "sqlite"


def sync_engine(database_url: str) -> Engine:
    """Return an engine without an event loop, for SQLite and for the migrations of both databases."""
    engine = create_engine(with_driver(database_url))
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", _configure_sqlite)
    return engine


def with_driver(database_url: str) -> URL:
    """Return the URL with the driver and the network limits that this server uses.

    Raises:
        ValueError: the database is neither SQLite nor PostgreSQL.
    """
    url = make_url(database_url)
    if is_sqlite(database_url):
        return url.set(drivername="sqlite+pysqlite")
    if url.get_backend_name() == "postgresql":
        return url.set(drivername="postgresql+psycopg").update_query_dict(_postgresql_limits(url))
    raise ValueError(f"database_url: got {url.drivername!r}, expected sqlite or postgresql")


def _postgresql_engine(database_url: str) -> AsyncEngine:
    # A pooler may give each transaction another server connection, which knows no prepared statement of ours.
    options = {"connect_args": {"prepare_threshold": None}}
    return create_async_engine(with_driver(database_url), pool_pre_ping=True, **options)


def _postgresql_limits(url: URL) -> dict[str, str]:
    """Return libpq's parameters by which a vanished host is noticed; parameters of the URL itself take precedence."""
    limits = {
        "connect_timeout": str(BUSY_TIMEOUT_S),
        "keepalives_idle": str(NETWORK_TIMEOUT_S),
        "keepalives_interval": "2",
        "keepalives_count": "3",
        "tcp_user_timeout": str(NETWORK_TIMEOUT_S * 1000),
    }
    return {name: value for name, value in limits.items() if name not in url.query}


def _configure_sqlite(connection: Any, _: Any) -> None:
    cursor = connection.cursor()
    cursor.execute(f"PRAGMA busy_timeout = {int(BUSY_TIMEOUT_S * 1000)}")
    cursor.execute("PRAGMA journal_mode = WAL")
    cursor.execute("PRAGMA synchronous = FULL")  # acknowledged means on disk, whatever happens to the machine
    cursor.close()
