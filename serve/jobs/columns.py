"""The columns of the job table, and the database's clock."""

from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Float,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    false,
    text,
)
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement

from serve.schema import MAX_URL_CHARS

MAX_MESSAGE_CHARS = 1024
TO_SEND = text("webhook_due_at IS NOT NULL")  # as good as no row

METADATA = MetaData()
VERSION = Table(
    "schema_version",
    METADATA,
    Column("version", Integer, nullable=False),
    Column("database_id", String(32)),  # distinguishes this table's files from those of others in one media store
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
    Column("artifacts", JSON),  # a list of objects with the fields of StoredArtifact
    Column("input_reference", JSON(none_as_null=True)),  # an object with the fields of StoredInput
    Column("input_sha256", String(64)),  # of its file, which several jobs may share
    Column("remixed_from_video_id", String(64)),
    Column("traceparent", String(64)),  # of the request that stored the job
    Column("webhook_url", String(MAX_URL_CHARS)),
    Column("webhook_due_at", Float),  # None: there is nothing to send
    Column("webhook_attempts", Integer, nullable=False, default=0),
    Column("upsampling_pending", Boolean, nullable=False, default=False, server_default=false()),
    Column("revised_prompt", Text),
    Column("prompt_upsampling_error", String(MAX_MESSAGE_CHARS)),
    Index("jobs_in_order", "status", "seq"),
    Index("jobs_by_end", "status", "completed_at"),
    Index("jobs_by_input", "input_sha256"),
    Index("jobs_by_webhook", "webhook_due_at", sqlite_where=TO_SEND, postgresql_where=TO_SEND),
    sqlite_autoincrement=True,  # a number is never given twice, so that order is order of arrival
)


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
