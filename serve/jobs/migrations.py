"""The versions of the job table: it is created, or brought from an older release's version to this one's."""

import logging
import time
from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

from sqlalchemy import JSON, Connection, Engine, bindparam, column, inspect, select, table, text, update
from sqlalchemy.exc import OperationalError

from serve.jobs.columns import METADATA, VERSION
from serve.jobs.database import SCHEMA_LOCK, sync_engine, with_driver
from serve.jobs.private_files import make_private_file, make_private_folder

logger = logging.getLogger("ray.serve")

START_TIMEOUT_S = 60.0
RETRY_S = 0.5


def _first(_: Connection) -> None:
    """Version 1 is what ``METADATA`` created first."""


def _estimates_and_ids(connection: Connection) -> None:
    for statement in (
        "ALTER TABLE schema_version ADD COLUMN database_id VARCHAR(32)",
        # Pixel-frames do not tell how long a job takes; jobs of version 1 have no cost and are not used in estimates.
        "ALTER TABLE jobs ADD COLUMN cost JSON",
        "ALTER TABLE jobs DROP COLUMN work",
        "ALTER TABLE jobs DROP COLUMN pixel_frames",
        "ALTER TABLE jobs ADD COLUMN fingerprint VARCHAR(64)",
        "ALTER TABLE jobs ADD COLUMN seconds VARCHAR(16)",
        "ALTER TABLE jobs ADD COLUMN metadata JSON",
    ):
        connection.exec_driver_sql(statement)


FILES_OF_VERSION_2 = (
    ("video", "video/mp4", ".mp4"),
    ("thumbnail", "image/jpeg", ".thumbnail.jpg"),
    ("spritesheet", "image/jpeg", ".spritesheet.jpg"),
)


def _list_of_artifacts(connection: Connection) -> None:
    """Replace the common prefix of a row's three files, and the sum of their sizes, by a list of artifacts.

    Both columns are dropped: if a running process of the older release still found them, its sweep of files without a
    record would remove the files of new rows.
    """
    connection.exec_driver_sql("ALTER TABLE jobs ADD COLUMN artifacts JSON")
    jobs = table("jobs", column("seq"), column("media"), column("artifacts", JSON))
    completed = connection.execute(select(jobs.c.seq, jobs.c.media).where(jobs.c.media.is_not(None))).all()
    listed = [
        {"number": seq, "files": [_stored(kind, prefix + suffix) for *kind, suffix in FILES_OF_VERSION_2]}
        for seq, prefix in completed
    ]
    if listed:
        new = update(jobs).where(jobs.c.seq == bindparam("number")).values(artifacts=bindparam("files", type_=JSON()))
        connection.execute(new, listed)
    connection.exec_driver_sql("ALTER TABLE jobs DROP COLUMN media")
    connection.exec_driver_sql("ALTER TABLE jobs DROP COLUMN media_bytes")


def _stored(kind: list[str], file: str) -> dict[str, str | None]:
    name, media_type = kind
    return {"name": name, "media_type": media_type, "size": None, "file": file}


def _inputs(connection: Connection) -> None:
    for statement in (
        "ALTER TABLE jobs ADD COLUMN input_reference JSON",
        "ALTER TABLE jobs ADD COLUMN input_sha256 VARCHAR(64)",
        "ALTER TABLE jobs ADD COLUMN remixed_from_video_id VARCHAR(64)",
        "CREATE INDEX jobs_by_input ON jobs (input_sha256)",
    ):
        connection.exec_driver_sql(statement)


def _webhooks(connection: Connection) -> None:
    for statement in (
        "ALTER TABLE jobs ADD COLUMN webhook_url VARCHAR(2048)",
        "ALTER TABLE jobs ADD COLUMN webhook_due_at FLOAT",
        "ALTER TABLE jobs ADD COLUMN webhook_attempts INTEGER NOT NULL DEFAULT 0",
        "CREATE INDEX jobs_by_webhook ON jobs (webhook_due_at) WHERE webhook_due_at IS NOT NULL",
    ):
        connection.exec_driver_sql(statement)


def _revised_prompts(connection: Connection) -> None:
    for statement in (
        "ALTER TABLE jobs ADD COLUMN upsampling_pending BOOLEAN NOT NULL DEFAULT FALSE",
        "ALTER TABLE jobs ADD COLUMN revised_prompt TEXT",
        "ALTER TABLE jobs ADD COLUMN prompt_upsampling_error VARCHAR(1024)",
    ):
        connection.exec_driver_sql(statement)


def _traces(connection: Connection) -> None:
    connection.exec_driver_sql("ALTER TABLE jobs ADD COLUMN traceparent VARCHAR(64)")


MIGRATIONS: tuple[Callable[[Connection], None], ...] = (
    *(_first, _estimates_and_ids, _list_of_artifacts, _inputs, _webhooks, _revised_prompts, _traces),
)
"""The step from version n to n + 1, at index n."""


def prepare(database_url: str) -> str:
    """Create the table, or bring an older one to this release's version; return the database's id.

    Several processes may do so at once. Waits for a database that does not run yet.

    Raises:
        ValueError: the database is of another kind, or of a newer release.
        TimeoutError: it cannot be reached.
    """
    url = with_driver(database_url)
    if url.get_backend_name() == "sqlite" and url.database not in (None, "", ":memory:"):
        make_private_folder(Path(url.database).parent)
        make_private_file(Path(url.database))  # SQLite gives the files beside it the same mode
    engine = sync_engine(database_url)
    deadline = time.monotonic() + START_TIMEOUT_S
    try:
        while (database_id := _upgraded(engine)) is None:
            if time.monotonic() > deadline:
                raise TimeoutError(f"the job table cannot be reached at {url.render_as_string()}")
            time.sleep(RETRY_S)
        return database_id
    finally:
        engine.dispose()


def _upgraded(engine: Engine) -> str | None:
    """The database's id; None while it cannot be reached."""
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
    for migrate in MIGRATIONS[found:]:
        migrate(connection)
    connection.execute(VERSION.update().values(version=current))
    connection.execute(VERSION.update().where(VERSION.c.database_id.is_(None)).values(database_id=uuid4().hex))
    return connection.execute(select(VERSION.c.database_id)).scalar_one()
