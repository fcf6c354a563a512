"""The job table's columns, its two databases and its versions."""

import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Connection,
    Engine,
    Float,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    create_engine,
    event,
    inspect,
    select,
    text,
)
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import OperationalError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement

from serve.jobs.private_files import make_private_file, make_private_folder

logger = logging.getLogger("ray.serve")

SCHEMA_LOCK = 0xC0503  # PostgreSQL's advisory locks go by number
ADMISSION_LOCK = SCHEMA_LOCK + 1
BUSY_TIMEOUT_S = 5
NETWORK_TIMEOUT_S = 10  # a PostgreSQL host that acknowledges nothing for this long has vanished
MAX_MESSAGE_CHARS = 1024
START_PATIENCE_S = 60.0

METADATA = MetaData()
VERSION = Table(
    "schema_version",
    METADATA,
    Column("version", Integer, nullable=False),
    Column("database_id", String(32)),  # tells this table's files from those of others in one media store
)
JOBS = Table(
    "jobs",
    METADATA,
    Column("seq", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True),
    Column("id", String(64), nullable=False, unique=True),
    Column("status", String(16), nullable=False),
    Column("model", String(255), nullable=False),
    Column("params", JSON, nullable=False),
    Column("cost", JSON),
    Column("fingerprint", String(64)),
    Column("seconds", String(16)),
    Column("metadata", JSON),
    Column("idempotency_key", String(255), unique=True),
    Column("request_id", String(255)),
    Column("created_at", Float, nullable=False),
    Column("started_at", Float),
    Column("completed_at", Float),
    Column("deadline_at", Float, nullable=False),
    Column("expires_at", Float),
    Column("owner", String(64), index=True),
    Column("lease_until", Float, nullable=False, default=0.0),
    Column("attempts", Integer, nullable=False, default=0),
    Column("cancel_requested", Boolean, nullable=False, default=False),
    Column("stage", String(32)),
    Column("step", Integer, nullable=False, default=0),
    Column("steps", Integer, nullable=False),
    Column("stage_durations", JSON),
    Column("error_code", String(64)),
    Column("error_message", String(MAX_MESSAGE_CHARS)),
    Column("media", String(128)),
    Column("media_bytes", BigInteger),
    Index("jobs_in_order", "status", "seq"),
    Index("jobs_by_end", "status", "completed_at"),
    sqlite_autoincrement=True,  # a number is never given twice, so that order is order of arrival
)

MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (),
    (
        "ALTER TABLE schema_version ADD COLUMN database_id VARCHAR(32)",
        # Pixel-frames do not tell how long a job takes; jobs of version 1 have no cost and are not estimated by.
        "ALTER TABLE jobs ADD COLUMN cost JSON",
        "ALTER TABLE jobs DROP COLUMN work",
        "ALTER TABLE jobs DROP COLUMN pixel_frames",
        "ALTER TABLE jobs ADD COLUMN fingerprint VARCHAR(64)",
        "ALTER TABLE jobs ADD COLUMN seconds VARCHAR(16)",
        "ALTER TABLE jobs ADD COLUMN metadata JSON",
    ),
)
"""SQL that leads from version n to n + 1, at index n; version 1 is what ``METADATA`` made first."""


@dataclass(frozen=True)
class Job:
    """One row. Times are seconds since the epoch by the database's clock.

    Attributes:
        seq: order of arrival.
        params: the fields of the request's ``GenerationParams``.
        cost: fields of the ``Cost``; None for a row of version 1.
        fingerprint: that of the request as the client sent it; None for a row of version 1.
        seconds: the video's length, if the client gave it so.
        metadata: the client's own texts by name; None for a row of version 1.
        owner: token of the claim under which somebody works on it.
        attempts: times that its denoise was begun.
        steps: of the denoise; ``step`` of them are done.
        media: what its files' names begin with: the database's folder and the claim's token.
    """

    seq: int
    id: str
    status: str
    model: str
    params: dict[str, Any]
    cost: dict[str, Any] | None
    fingerprint: str | None
    seconds: str | None
    metadata: dict[str, str] | None
    idempotency_key: str | None
    request_id: str | None
    created_at: float
    started_at: float | None
    completed_at: float | None
    deadline_at: float
    expires_at: float | None
    owner: str | None
    lease_until: float
    attempts: int
    cancel_requested: bool
    stage: str | None
    step: int
    steps: int
    stage_durations: dict[str, float] | None
    error_code: str | None
    error_message: str | None
    media: str | None
    media_bytes: int | None

    @property
    def ended(self) -> bool:
        return self.status in ("completed", "failed")


class Now(FunctionElement[float]):
    """The database's clock, in seconds since the epoch: the one clock that all processes share."""

    type = Float()
    inherit_cache = True


@compiles(Now, "sqlite")
def _sqlite_now(*_: Any, **__: Any) -> str:
    return "((julianday('now') - 2440587.5) * 86400.0)"


@compiles(Now, "postgresql")
def _postgresql_now(*_: Any, **__: Any) -> str:
    return "extract(epoch from clock_timestamp())::double precision"


def prepare(database_url: str) -> str:
    """Create the table or bring an older one to this release's version; the database's id.

    Several processes may do so at once. Waits for a database that is not up yet.

    Raises:
        ValueError: the database is of another kind, or of a newer release.
        TimeoutError: it cannot be reached.
    """
    url = _with_driver(database_url)
    if url.get_backend_name() == "sqlite" and url.database not in (None, "", ":memory:"):
        make_private_folder(Path(url.database).parent)
        make_private_file(Path(url.database))  # SQLite gives the files beside it the same mode
    engine = create_engine(url)
    _configure(engine)
    deadline = time.monotonic() + START_PATIENCE_S
    try:
        while (database_id := _upgraded(engine)) is None:
            if time.monotonic() > deadline:
                raise TimeoutError(f"the job table cannot be reached at {url.render_as_string()}")
            time.sleep(0.5)
        return database_id
    finally:
        engine.dispose()


def sqlite_engine(database_url: str) -> Engine:
    """The engine over a prepared file."""
    engine = create_engine(_with_driver(database_url))
    _configure(engine)
    return engine


def postgresql_engine(database_url: str) -> AsyncEngine:
    """The engine over a prepared database."""
    # A pooler may give each transaction another server connection, which knows no prepared statement of ours.
    options = {"connect_args": {"prepare_threshold": None}}
    return create_async_engine(_with_driver(database_url), pool_pre_ping=True, **options)


def is_sqlite(database_url: str) -> bool:
    return make_url(database_url).get_backend_name() == "sqlite"


def _with_driver(database_url: str) -> URL:
    url = make_url(database_url)
    if is_sqlite(database_url):
        return url.set(drivername="sqlite+pysqlite")
    if url.get_backend_name() == "postgresql":
        return url.set(drivername="postgresql+psycopg").update_query_dict(_postgresql_limits(url))
    raise ValueError(f"database_url: got {url.drivername!r}, expected sqlite or postgresql")


def _postgresql_limits(url: URL) -> dict[str, str]:
    """libpq's parameters by which a host that has vanished is noticed; what the URL itself says counts more."""
    limits = {
        "connect_timeout": str(BUSY_TIMEOUT_S),
        "keepalives_idle": str(NETWORK_TIMEOUT_S),
        "keepalives_interval": "2",
        "keepalives_count": "3",
        "tcp_user_timeout": str(NETWORK_TIMEOUT_S * 1000),
    }
    return {name: value for name, value in limits.items() if name not in url.query}


def _configure(engine: Engine) -> None:
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", _configure_sqlite)


def _configure_sqlite(connection: Any, _: Any) -> None:
    cursor = connection.cursor()
    cursor.execute(f"PRAGMA busy_timeout = {int(BUSY_TIMEOUT_S * 1000)}")
    cursor.execute("PRAGMA journal_mode = WAL")
    cursor.execute("PRAGMA synchronous = FULL")  # acknowledged means on disk, whatever happens to the machine
    cursor.close()


def _upgraded(engine: Engine) -> str | None:
    try:
        with engine.begin() as connection:
            return _upgrade(connection)
    except OperationalError:
        logger.warning("The job table cannot be reached.", exc_info=True)
        return None


def _upgrade(connection: Connection) -> str:
    current = len(MIGRATIONS)
    if connection.dialect.name == "postgresql":
        connection.execute(text(f"SELECT pg_advisory_xact_lock({SCHEMA_LOCK})"))
    else:
        connection.exec_driver_sql("BEGIN IMMEDIATE")
    if not inspect(connection).has_table(VERSION.name):
        METADATA.create_all(connection)
        connection.execute(VERSION.insert().values(version=current))
    found = connection.execute(select(VERSION.c.version)).scalar_one()
    if found > current:
        raise ValueError(f"the job table is of version {found}, expected at most {current}: a newer release wrote it")
    for statements in MIGRATIONS[found:]:
        for statement in statements:
            connection.exec_driver_sql(statement)
    connection.execute(VERSION.update().values(version=current))
    connection.execute(VERSION.update().where(VERSION.c.database_id.is_(None)).values(database_id=uuid4().hex))
    return connection.execute(select(VERSION.c.database_id)).scalar_one()
