"""The job table on both databases: claims, fencing, leases, order, admission, versions, outages."""

import asyncio
import sqlite3
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import psycopg
import pytest
from postgres import Postgres, binaries
from running_server import free_port
from sqlalchemy import create_engine, text
from sqlalchemy.exc import StatementError

from serve.errors import DatabaseUnavailable
from serve.jobs import database, job_schema
from serve.jobs import table as jobs
from serve.jobs.job_schema import Job, prepare
from serve.jobs.table import Cost, JobSettings, JobTable, NewJob, Outcome, Progress
from serve.schema import ListQuery

T = TypeVar("T")
COST = Cost(model="m on cpu", mode="exact", passes=2, text=10, step=100, decode=50)
NEW = NewJob(model="m", params={"prompt": "x"}, cost=COST._asdict(), steps=4, fingerprint="f")
DURATIONS = {"tokenizer": 0.1, "denoiser": 2.0, "decoders": 1.0}
SETTINGS = JobSettings("", lease_s=30, max_attempts=3, max_queued_jobs=8, job_deadline_s=100, retention_s=100)


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


def run(settings: JobSettings, scenario: Callable[[JobTable], Awaitable[T]]) -> T:
    """A scenario on a table whose connections are closed afterwards."""

    async def scene() -> T:
        table = JobTable(settings, "m")
        try:
            return await scenario(table)
        finally:
            await table.close()

    return asyncio.run(scene())


async def submitted(table: JobTable, new: NewJob = NEW) -> Job:
    job = await table.submit(new)
    assert job is not None
    return job


async def claimed(table: JobTable) -> tuple[Job, str]:
    job = await table.claim()
    assert job is not None
    assert job.owner is not None
    return job, job.owner


async def completed(table: JobTable, new: NewJob = NEW) -> Job:
    job = await submitted(table, new)
    _, owner = await claimed(table)
    await table.start(owner)
    assert await table.complete(owner, owner, 1, DURATIONS)
    return await read(table, job)


async def read(table: JobTable, job: Job) -> Job:
    found = await table.get(job.id)
    assert found is not None
    return found


def test_a_job_goes_from_queued_over_in_progress_to_completed(settings: JobSettings) -> None:
    async def scenario(table: JobTable) -> None:
        job = await submitted(table)
        assert (job.status, job.attempts, job.step, job.params) == ("queued", 0, 0, {"prompt": "x"})
        assert abs(job.created_at - time.time()) < 2
        assert job.deadline_at == pytest.approx(job.created_at + 100, abs=0.1)
        _, owner = await claimed(table)
        assert (await read(table, job)).status == "queued", "until its denoise begins"
        started = await table.start(owner)
        assert started is not None
        assert started.attempts == 1
        assert 0 <= started.waited_s < 5
        await table.renew({owner: Progress("denoiser", 3)})
        job = await read(table, job)
        assert (job.status, job.stage, job.step) == ("in_progress", "denoiser", 3)
        assert await table.complete(owner, "media", 7, DURATIONS)
        assert await table.complete(owner, "media", 7, DURATIONS), "an answer that was lost is asked for again"
        assert not await table.complete(owner, "other", 7, DURATIONS)
        job = await read(table, job)
        assert (job.status, job.step, job.media, job.media_bytes) == ("completed", 4, "media", 7)
        assert list(job.stage_durations or {}) == list(DURATIONS)
        assert job.completed_at is not None
        assert job.expires_at == pytest.approx(job.completed_at + 100, abs=0.1)
        assert await table.claim() is None

    run(settings, scenario)


def test_jobs_are_claimed_in_order_of_arrival_and_only_one_waits_before_an_idle_denoiser(settings: JobSettings) -> None:
    async def scenario(table: JobTable) -> None:
        jobs = [await submitted(table) for _ in range(6)]
        order = []
        owners = []
        for running in range(3):
            job, owner = await claimed(table)
            order.append(job.seq)
            owners.append(owner)
            assert (await table.claim() is None) == (running < 2), "as many may wait as are denoised"
            await table.start(owner)
        assert order[:2] == [job.seq for job in jobs[:2]]

    run(settings, scenario)


def test_a_job_is_claimed_by_one_of_many_at_the_same_moment(settings: JobSettings) -> None:
    async def scenario(table: JobTable) -> None:
        job = await submitted(table)
        claims = await asyncio.gather(*(table.claim() for _ in range(12)))
        assert [claim.id for claim in claims if claim] == [job.id]

    run(settings, scenario)


def test_runners_that_claim_at_the_same_moment_take_no_more_than_may_wait(settings: JobSettings) -> None:
    async def scenario(table: JobTable) -> None:
        jobs = [await submitted(table) for _ in range(8)]
        others = [JobTable(settings, "m") for _ in range(3)]
        runners = [table, *others]
        claims = await asyncio.gather(*(runner.claim() for _ in range(8) for runner in runners))
        for other in others:
            await other.close()
        assert [claim.id for claim in claims if claim] == [jobs[0].id]

    run(settings, scenario)


def test_a_runner_that_lost_its_lease_can_change_nothing(settings: JobSettings) -> None:
    async def scenario(table: JobTable) -> None:
        job = await submitted(table)
        _, old = await claimed(table)
        await table.start(old)
        assert await table.claim() is None, "the lease holds"
        await asyncio.sleep(1.1)
        taken, new = await claimed(table)
        assert (taken.id, taken.status, taken.attempts) == (job.id, "queued", 1)
        assert new != old
        assert await table.kept([old, new]) == {new}
        assert await table.start(old) is None
        assert not await table.complete(old, "old", 1, DURATIONS)
        await table.fail(old, Outcome("x", "x"))
        await table.release(old)
        await table.settle(old)
        await table.renew({old: Progress("denoiser", 4)})
        assert await read(table, job) == taken
        started = await table.start(new)
        assert started is not None
        assert started.attempts == 2
        assert await table.complete(new, "new", 1, DURATIONS)
        assert (await read(table, job)).media == "new"

    run(replace(settings, lease_s=1), scenario)


def test_a_renewed_lease_holds(settings: JobSettings) -> None:
    async def scenario(table: JobTable) -> None:
        await submitted(table)
        _, owner = await claimed(table)
        for _ in range(4):
            await asyncio.sleep(0.4)
            await table.renew({owner: Progress()})
            assert await table.claim() is None

    run(replace(settings, lease_s=1), scenario)


def test_a_job_that_was_begun_too_often_fails_with_a_reason(settings: JobSettings) -> None:
    async def scenario(table: JobTable) -> None:
        job = await submitted(table)
        for attempt in (1, 2, 3):
            _, owner = await claimed(table)
            started = await table.start(owner)
            assert started is not None
            assert started.attempts == attempt
            await table.release(owner)
        assert await table.claim() is None
        assert len(await table.settle()) == 1
        job = await read(table, job)
        assert (job.status, job.error_code) == ("failed", "attempts_exhausted")

    run(settings, scenario)


def test_a_job_past_its_deadline_fails_whether_it_waits_or_runs(settings: JobSettings) -> None:
    async def scenario(table: JobTable) -> None:
        running, waiting = await submitted(table), await submitted(table)
        _, owner = await claimed(table)
        await table.start(owner)
        await asyncio.sleep(0.6)
        assert await table.kept([owner]) == set()
        await table.settle(owner)
        await table.settle()
        for job in (running, waiting):
            assert (await read(table, job)).error_code == "deadline_exceeded"

    run(replace(settings, job_deadline_s=0.5), scenario)


def test_a_cancelled_job_never_starts_and_a_running_one_is_taken_away(settings: JobSettings) -> None:
    async def scenario(table: JobTable) -> None:
        running, waiting = await submitted(table), await submitted(table)
        _, owner = await claimed(table)
        await table.start(owner)
        for job in (running, waiting):
            await table.cancel(job.id)
        assert (await read(table, waiting)).error_code == "cancelled"
        assert await table.claim() is None
        assert (await read(table, running)).status == "in_progress", "its runner has the last word"
        assert await table.kept([owner]) == set()
        assert not await table.complete(owner, "media", 1, DURATIONS)
        await table.settle(owner)
        assert (await read(table, running)).error_code == "cancelled"

    run(settings, scenario)


def test_a_cancelled_job_whose_runner_died_fails_as_cancelled(settings: JobSettings) -> None:
    async def scenario(table: JobTable) -> None:
        job = await submitted(table)
        _, owner = await claimed(table)
        await table.start(owner)
        await table.cancel(job.id)
        await asyncio.sleep(1.1)
        assert await table.claim() is None
        assert len(await table.settle()) == 1
        assert (await read(table, job)).error_code == "cancelled"

    run(replace(settings, lease_s=1), scenario)


def test_a_deleted_job_is_gone_for_its_runner_too(settings: JobSettings) -> None:
    async def scenario(table: JobTable) -> None:
        job = await submitted(table)
        _, owner = await claimed(table)
        assert (await table.delete(job.id)) is not None
        assert await table.get(job.id) is None
        assert await table.delete(job.id) is None
        assert await table.start(owner) is None
        assert await table.kept([owner]) == set()
        after = await submitted(table)
        assert after.seq > job.seq, "order of arrival outlives deletion"

    run(settings, scenario)


def test_an_idempotency_key_makes_one_job_however_often_it_comes(settings: JobSettings) -> None:
    async def scenario(table: JobTable) -> None:
        keyed = NEW._replace(idempotency_key="k")
        jobs = await asyncio.gather(*(table.submit(keyed) for _ in range(10)))
        assert len({job.id for job in jobs if job}) == 1
        assert await table.queued() == 1

    run(settings, scenario)


def test_the_queue_is_bounded_exactly_however_many_come_at_once(settings: JobSettings) -> None:
    async def scenario(table: JobTable) -> None:
        jobs = await asyncio.gather(*(table.submit(NEW) for _ in range(30)))
        assert sum(job is not None for job in jobs) == 8
        assert await table.queued() == 8
        keyed = NEW._replace(idempotency_key="k")
        assert await table.submit(keyed) is None
        _, owner = await claimed(table)
        await table.start(owner)
        known = await table.submit(keyed)
        assert known is not None
        assert await table.submit(NEW) is None
        again = await table.submit(keyed)
        assert again is not None
        assert again.id == known.id, "a stored job is answered, queue or no queue"

    run(settings, scenario)


def test_submissions_that_arrive_together_share_a_commit_and_keep_their_order(settings: JobSettings) -> None:
    async def scenario(table: JobTable) -> None:
        batches = []
        write = table._database.write_alone

        async def counted(transaction: Any) -> Any:
            batches.append(transaction)
            return await write(transaction)

        table._database.write_alone = counted  # type: ignore[method-assign]
        news = [NEW._replace(params={"prompt": str(number)}) for number in range(60)]
        stored = [job for job in await asyncio.gather(*map(table.submit, news)) if job]
        assert len(batches) <= 2
        assert [job.params for job in stored] == [new.params for new in news]
        assert stored == sorted(stored, key=lambda job: job.seq)
        assert await table.page(None, 60, newest_first=False) == stored, "what is answered is what is stored"

    run(replace(settings, max_queued_jobs=100), scenario)


def test_keys_and_room_count_within_a_batch_as_they_do_between_batches(settings: JobSettings) -> None:
    async def scenario(table: JobTable) -> None:
        known = await submitted(table, NEW._replace(idempotency_key="known"))
        keys = ["0", "known", None, "0", "1", None, "0"]
        answers = await asyncio.gather(*(table.submit(NEW._replace(idempotency_key=key)) for key in keys))
        ids = [job and job.id for job in answers]
        assert ids == [ids[0], known.id, ids[2], ids[0], None, None, ids[0]]
        assert len({known.id, ids[0], ids[2]}) == await table.queued() == 3

    run(replace(settings, max_queued_jobs=3), scenario)


def test_a_submission_that_cannot_be_stored_fails_none_beside_it(settings: JobSettings) -> None:
    async def scenario(table: JobTable) -> None:
        news = [NEW, NEW._replace(params={"prompt": object()}), NEW]
        first, second, third = await asyncio.gather(*map(table.submit, news), return_exceptions=True)
        assert isinstance(second, StatementError | TypeError)
        assert isinstance(first, Job)
        assert isinstance(third, Job)
        assert await table.queued() == 2

    run(settings, scenario)


def test_pages_go_both_ways(settings: JobSettings) -> None:
    async def scenario(table: JobTable) -> None:
        jobs = [await submitted(table) for _ in range(5)]
        ids = [job.id for job in jobs]
        assert [job.id for job in await table.page(None, 3, newest_first=True)] == ids[:1:-1]
        assert [job.id for job in await table.page(jobs[2].seq, 3, newest_first=True)] == [ids[1], ids[0]]
        assert [job.id for job in await table.page(jobs[2].seq, 3, newest_first=False)] == ids[3:]

    run(settings, scenario)


def test_ended_jobs_expire_with_the_names_of_their_files(settings: JobSettings) -> None:
    async def scenario(table: JobTable) -> None:
        await submitted(table)
        _, owner = await claimed(table)
        await table.start(owner)
        assert await table.media() == {owner}, "files of a claim that may yet finish are in use"
        await table.complete(owner, "media", 1, DURATIONS)
        waiting = await submitted(table)
        assert await table.media() == {"media"}
        assert await table.expire() == []
        await asyncio.sleep(1.1)
        assert [job.media for job in await table.expire()] == ["media"]
        assert [job.id for job in await table.page(None, 9, newest_first=True)] == [waiting.id]

    run(replace(settings, retention_s=1), scenario)


def test_what_a_row_says_outlives_the_process(settings: JobSettings) -> None:
    job = run(settings, submitted)
    prepare(settings.database_url)
    assert run(settings, lambda table: table.get(job.id)) == job


def test_an_older_table_is_brought_up_and_a_newer_one_refused(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare(url)
    job = run(replace(SETTINGS, database_url=url), submitted)
    newer = (*job_schema.MIGRATIONS, ("ALTER TABLE jobs ADD COLUMN note TEXT", "UPDATE jobs SET note = 'kept'"))
    with monkeypatch.context() as patch:
        patch.setattr(job_schema, "MIGRATIONS", newer)
        prepare(url)
        prepare(url)
        engine = create_engine(url.replace("postgresql:", "postgresql+psycopg:"))
        with engine.connect() as connection:
            assert connection.execute(text("SELECT id, note FROM jobs")).one() == (job.id, "kept")
        engine.dispose()
    with pytest.raises(ValueError, match="version 3, expected at most 2"):
        prepare(url)


OF_VERSION_1: dict[str, None] = dict.fromkeys(("cost", "fingerprint", "seconds", "metadata"))


def make_version_1(url: str) -> None:
    """Give the tables the columns that the first release made and filled."""
    engine = create_engine(url.replace("postgresql:", "postgresql+psycopg:"))
    with engine.begin() as connection:
        connection.execute(text("ALTER TABLE schema_version DROP COLUMN database_id"))
        for column in OF_VERSION_1:
            connection.execute(text(f"ALTER TABLE jobs DROP COLUMN {column}"))
        for column in ("work", "pixel_frames"):
            connection.execute(text(f"ALTER TABLE jobs ADD COLUMN {column} FLOAT NOT NULL DEFAULT 1"))
        connection.execute(text("UPDATE schema_version SET version = 1"))
    engine.dispose()


def test_the_first_releases_table_gets_an_id_and_keeps_its_rows(url: str) -> None:
    database_id = prepare(url)
    assert prepare(url) == database_id
    job = run(replace(SETTINGS, database_url=url), submitted)
    make_version_1(url)
    given = prepare(url)
    assert len(given) == 32
    assert given != database_id
    assert prepare(url) == given
    assert run(replace(SETTINGS, database_url=url), lambda table: table.get(job.id)) == replace(job, **OF_VERSION_1)


def test_two_databases_have_two_ids(tmp_path: Path) -> None:
    assert prepare(f"sqlite:///{tmp_path}/one.sqlite") != prepare(f"sqlite:///{tmp_path}/other.sqlite")


def test_a_runner_claims_counts_and_judges_the_jobs_of_its_own_model_alone(settings: JobSettings) -> None:
    async def scenario(table: JobTable) -> None:
        theirs = JobTable(replace(settings, max_attempts=1), "other")
        foreign = await submitted(table, NEW._replace(model="other"))
        ours = await submitted(table)
        assert await table.queued() == await theirs.queued() == 1
        assert [job.seq for job in await table.active()] == [ours.seq]
        claim, owner = await claimed(table)
        assert claim.id == ours.id, "the older job is another model's"
        await table.start(owner)
        await table.release(owner)
        assert await theirs.settle() == [], "one attempt is enough for their rules, but it is not theirs"
        claim, owner = await claimed(theirs)
        assert claim.id == foreign.id
        assert not await theirs.may_claim()
        assert await table.may_claim()
        await theirs.close()

    run(settings, scenario)


def test_rows_of_version_1_are_shown_and_claimed_and_do_not_spoil_the_estimates(url: str) -> None:
    prepare(url)
    settings = replace(SETTINGS, database_url=url)
    done, waiting = run(settings, completed), run(settings, submitted)
    make_version_1(url)
    prepare(url)

    async def scenario(table: JobTable) -> None:
        assert await read(table, done) == replace(done, **OF_VERSION_1)
        assert await table.finished() == []
        assert [(job.seq, job.cost) for job in await table.active()] == [(waiting.seq, None)]
        assert (await claimed(table))[0].id == waiting.id
        await submitted(table)
        assert [job.cost for job in await table.active()] == [None, COST]

    run(settings, scenario)


def test_a_page_has_the_jobs_that_pass_all_filters(settings: JobSettings) -> None:
    async def scenario(table: JobTable) -> None:
        async def found(**filters: object) -> list[int]:
            return [job.seq - first.seq for job in await table.page(None, 9, False, ListQuery(**filters))]

        first = await completed(table, NEW._replace(metadata={"job": "a", "part.1": 'a "b" %\'é🎈'}))
        await submitted(table, NEW._replace(metadata={"job": "a"}))
        await submitted(table, NEW._replace(metadata={}))
        await submitted(table)
        assert await found() == [0, 1, 2, 3]
        assert await found(status="queued") == [1, 2, 3]
        assert await found(status="failed") == []
        assert await found(metadata={"job": "a"}) == [0, 1]
        assert await found(metadata={"job": "a"}, status="queued") == [1]
        assert await found(metadata={"job": "a", "part.1": 'a "b" %\'é🎈'}) == [0]
        for nobodys in ({"job": "A"}, {"job": "%"}, {"part": "a"}, {"job": "a", "x": ""}):
            assert await found(metadata=nobodys) == []
        second = int(first.created_at)
        assert await found(created_before=second) == []
        assert await found(created_after=second) == [0, 1, 2, 3]
        assert await found(created_after=second, created_before=second + 60) == [0, 1, 2, 3]
        assert await found(created_after=second + 60) == []

    run(settings, scenario)


def test_many_small_jobs_do_not_push_out_what_is_known_of_large_ones(
    settings: JobSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = COST._replace(decode=1)

    async def scenario(table: JobTable) -> None:
        await completed(table)
        for _ in range(12):
            await completed(table, NEW._replace(cost=small._asdict()))
        await completed(table, NEW._replace(cost=small._asdict(), steps=8))
        finished = await table.finished()
        assert [(job.cost, job.steps) for job in finished] == [(small, 8)] + [(small, 4)] * 5 + [(COST, 4)]
        assert finished[0].stage_durations == DURATIONS
        assert 0 <= finished[0].wall_s < 60
        monkeypatch.setattr(jobs, "MOST_SAMPLES", 2)
        assert len(await table.finished()) == 2

    run(settings, scenario)


def test_another_kind_of_database_is_refused() -> None:
    with pytest.raises(ValueError, match="database_url: got 'mysql', expected sqlite or postgresql"):
        prepare("mysql://localhost/jobs")


def test_a_locked_sqlite_file_is_unavailable_and_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_schema, "BUSY_TIMEOUT_S", 0.2)
    url = f"sqlite:///{tmp_path}/jobs.sqlite"
    prepare(url)

    async def scenario(table: JobTable) -> None:
        job = await submitted(table)
        other = sqlite3.connect(tmp_path / "jobs.sqlite", isolation_level=None)
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(DatabaseUnavailable):
            await table.submit(NEW)
        assert (await read(table, job)).id == job.id, "readers go on"
        other.execute("ROLLBACK")
        other.close()
        await submitted(table)

    run(replace(SETTINGS, database_url=url), scenario)


def test_the_writers_of_one_process_take_turns_instead_of_finding_sqlite_locked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job_schema, "BUSY_TIMEOUT_S", 0.001)
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
    monkeypatch.setattr(job_schema, "BUSY_TIMEOUT_S", 0.5)
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
        assert await table.delete(job.id) == job

    run(replace(SETTINGS, database_url=url), scenario)


@pytest.mark.parametrize("url", ["postgresql"], indirect=True)
def test_a_postgresql_that_does_not_answer_is_unavailable_within_the_limit(
    postgres: Postgres, settings: JobSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "TRANSACTION_TIMEOUT_S", 1.0)

    async def scenario(table: JobTable) -> None:
        job = await submitted(table)
        with postgres.frozen():
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
