"""Fixtures of job tables in both databases; a pytest plugin of the test files that name it."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest
from job_tables import SETTINGS
from postgres import Postgres, binaries
from running_server import free_port

from serve.jobs.job import JobSettings
from serve.jobs.migrations import prepare


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    if binaries() is None:
        pytest.skip("PostgreSQL is not installed")
    server = Postgres(free_port())
    server.start()
    yield server
    server.remove()


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database of either kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/jobs.sqlite"
    server: Postgres = request.getfixturevalue("postgres")
    with psycopg.connect(server.url) as connection:
        connection.execute("DROP TABLE IF EXISTS jobs, schema_version")
    return server.url


@pytest.fixture
def settings(url: str) -> JobSettings:
    prepare(url)
    return replace(SETTINGS, database_url=url)
