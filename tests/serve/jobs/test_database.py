"""Databases that are locked, frozen, read-only or away: unavailable meanwhile, complete afterwards."""

import asyncio
import sqlite3
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest
from job_tables import NEW, SETTINGS, read, run, submitted
from postgres import Postgres

from serve.errors import DatabaseUnavailable
from serve.jobs import database
from serve.jobs.job import JobSettings
from serve.jobs.migrations import prepare
from serve.jobs.table import JobTable

pytest_plugins = ["job_table_fixtures"]


def test_a_locked_sqlite_file_is_unavailable_and_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "BUSY_TIMEOUT_S", 0.2)
    url = f"sqlite:///{tmp_path}/jobs.sqlite"
    prepare(url)

    async def scenario(table: JobTable) -> None:
        job = await submitted(table)
        other = sqlite3.connect(tmp_path / "jobs.sqlite", isolation_level=None)
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(DatabaseUnavailable):
            await table.submit(NEW)
        assert (await read(table, job)).id == job.id, "reads still work"
        other.execute("ROLLBACK")
        other.close()
        await submitted(table)

    run(replace(SETTINGS, database_url=url), scenario)


def test_the_writers_of_one_process_take_turns_instead_of_finding_sqlite_locked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "BUSY_TIMEOUT_S", 0.001)
    url = f"sqlite:///{tmp_path}/jobs.sqlite"
    prepare(url)

    async def scenario(table: JobTable) -> None:
        jobs = await asyncio.gather(*(submitted(table) for _ in range(100)))
        await asyncio.gather(*(table.cancel(job.id) for job in jobs), *(submitted(table) for _ in range(100)))
        assert await table.queued() == 100

    run(replace(SETTINGS, database_url=url, max_queued_jobs=200), scenario)


def test_writes_that_wait_behind_an_outage_fail_with_it_and_not_one_by_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "BUSY_TIMEOUT_S", 0.5)
    url = f"sqlite:///{tmp_path}/jobs.sqlite"
    prepare(url)

    async def scenario(table: JobTable) -> None:
        job = await submitted(table)
        with closing(sqlite3.connect(tmp_path / "jobs.sqlite", isolation_level=None)) as other:
            other.execute("BEGIN EXCLUSIVE")
            start = time.monotonic()
            results = await asyncio.gather(*(table.delete(job.id) for _ in range(20)), return_exceptions=True)
            assert {type(result) for result in results} == {DatabaseUnavailable}
            assert time.monotonic() - start < 5, "twenty would take ten seconds"
        deleted = await table.delete(job.id)
        assert deleted is not None
        assert deleted.job == job

    run(replace(SETTINGS, database_url=url), scenario)


@pytest.mark.parametrize("url", ["postgresql"], indirect=True)
def test_a_postgresql_that_does_not_answer_is_unavailable_within_the_limit(
    postgres: Postgres, settings: JobSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(table: JobTable) -> None:
        job = await submitted(table)
        with monkeypatch.context() as patch, postgres.frozen():
            patch.setattr(database, "TRANSACTION_TIMEOUT_S", 1.0)
            for attempt in (table.get(job.id), table.submit(NEW)):
                began = time.monotonic()
                with pytest.raises(DatabaseUnavailable):
                    await attempt
                assert time.monotonic() - began < 20, "psycopg itself takes ten seconds to give up"
        assert await read(table, job) == job

    run(settings, scenario)


@pytest.mark.parametrize("url", ["postgresql"], indirect=True)
def test_a_postgresql_that_takes_no_writes_is_unavailable_until_it_does(
    postgres: Postgres, settings: JobSettings
) -> None:
    async def scenario(table: JobTable) -> None:
        job = await submitted(table)
        with psycopg.connect(postgres.url, autocommit=True) as connection:
            connection.execute("ALTER DATABASE postgres SET default_transaction_read_only = on")
            postgres.end_sessions(connection)
            for attempt in (table.submit(NEW), table.claim(), table.cancel(job.id)):
                with pytest.raises(DatabaseUnavailable):
                    await attempt
            connection.execute("SET default_transaction_read_only = off")
            connection.execute("ALTER DATABASE postgres RESET default_transaction_read_only")
        assert await table.claim() is not None, "by a new connection, without a restart"

    run(settings, scenario)


@pytest.mark.parametrize("url", ["postgresql"], indirect=True)
def test_a_postgresql_that_goes_away_is_unavailable_and_comes_back_with_every_row(
    postgres: Postgres, settings: JobSettings
) -> None:
    async def scenario(table: JobTable) -> None:
        job = await submitted(table)
        postgres.stop()
        for attempt in (table.get(job.id), table.submit(NEW), table.claim()):
            with pytest.raises(DatabaseUnavailable):
                await attempt
        postgres.start()
        assert await read(table, job) == job

    run(settings, scenario)
