"""Job tables of every version: created, brought from older releases, refused from newer ones."""

import asyncio
import os
import sqlite3
from collections.abc import AsyncGenerator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fakes import OF_A_VIDEO, FakeGraph
from job_runners import DENOISING, FINISHED, with_runner
from job_tables import COST, DURATIONS, NEW, SETTINGS, claimed, completed, run, started, submitted, video
from paths import ROOT
from sqlalchemy import Connection, inspect, text

from cosmos3_models import GenerationParams
from serve.app import AppArgs
from serve.estimates.schedule import Rates, Schedule
from serve.graph.artifacts import MEDIA_TYPES
from serve.graph.graph import Stages
from serve.jobs import migrations
from serve.jobs.columns import JOBS
from serve.jobs.database import is_sqlite, sync_engine
from serve.jobs.job import Job, JobSettings, StoredInput
from serve.jobs.media_store import MediaStore
from serve.jobs.migrations import prepare
from serve.jobs.records import record_of
from serve.jobs.runner import JobRunner
from serve.jobs.table import JobTable
from serve.jobs.videos import Videos

pytest_plugins = ["job_table_fixtures"]


def test_a_row_outlives_the_process(settings: JobSettings) -> None:
    job = run(settings, submitted)
    prepare(settings.database_url)
    assert run(settings, lambda table: table.get(job.id)) == job


def test_an_older_table_is_migrated_and_a_newer_one_refused(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare(url)
    job = run(replace(SETTINGS, database_url=url), submitted)

    def add_note(connection: Connection) -> None:
        connection.exec_driver_sql("ALTER TABLE jobs ADD COLUMN note TEXT")
        connection.exec_driver_sql("UPDATE jobs SET note = 'x'")

    with monkeypatch.context() as patch:
        patch.setattr(migrations, "MIGRATIONS", (*migrations.MIGRATIONS, add_note))
        prepare(url)
        prepare(url)
        engine = sync_engine(url)
        with engine.connect() as connection:
            assert connection.execute(text("SELECT id, note FROM jobs")).one() == (job.id, "x")
        engine.dispose()
    newest = len(migrations.MIGRATIONS)
    with pytest.raises(ValueError, match=f"version {newest + 1}, expected at most {newest}"):
        prepare(url)


def test_two_databases_have_two_ids(tmp_path: Path) -> None:
    assert prepare(f"sqlite:///{tmp_path}/one.sqlite") != prepare(f"sqlite:///{tmp_path}/other.sqlite")


VERSION_2 = (ROOT / "tests/data/job_table_version_2.sql").read_text()
VERSION_4 = (ROOT / "tests/data/job_table_version_4.sql").read_text()
VERSION_3 = (ROOT / "tests/data/job_table_version_3.sql").read_text()
PREFIX_3 = "d0845ac2930a4df1a21339e8feadbf60/1f9b48502ede9a06fe9d0b48114cf3da"
FILES_3 = [PREFIX_3 + suffix for suffix in (".mp4", ".thumbnail.jpg", ".spritesheet.jpg")]
FOLDER_4 = "95c9aea30b9542f78c3b84ca1759684d"
PREFIX_2 = "d8576eb2b9584abc99f57dad6786b550/059c486e83e42d11492a3e064e8d90da"
FILES_2 = [PREFIX_2 + suffix for suffix in (".mp4", ".thumbnail.jpg", ".spritesheet.jpg")]


def make_version_4(url: str) -> None:
    make(url, VERSION_4)


def make_version_3(url: str) -> None:
    make(url, VERSION_3)


def make_version_2(url: str) -> None:
    make(url, VERSION_2)


def make(url: str, dump: str) -> None:
    engine = sync_engine(url)
    seq = "INTEGER PRIMARY KEY AUTOINCREMENT" if is_sqlite(url) else "BIGSERIAL PRIMARY KEY"
    with engine.begin() as connection:
        for statement in dump.replace("seq SEQ", f"seq {seq}").split(";\n")[:-1]:
            connection.exec_driver_sql(statement.replace("%", "%%"))
    engine.dispose()


def make_version_1(url: str) -> None:
    """Create the table as the first release wrote it."""
    make_version_2(url)
    engine = sync_engine(url)
    with engine.begin() as connection:
        connection.execute(text("ALTER TABLE schema_version DROP COLUMN database_id"))
        for column in ("cost", "fingerprint", "seconds", "metadata"):
            connection.execute(text(f"ALTER TABLE jobs DROP COLUMN {column}"))
        for column in ("work", "pixel_frames"):
            connection.execute(text(f"ALTER TABLE jobs ADD COLUMN {column} FLOAT NOT NULL DEFAULT 1"))
        connection.execute(text("UPDATE schema_version SET version = 1"))
    engine.dispose()


def test_the_first_releases_table_gets_an_id_and_keeps_its_rows(url: str) -> None:
    make_version_1(url)
    given = prepare(url)
    assert len(given) == 32
    assert prepare(url) == given != PREFIX_2.partition("/")[0]
    assert columns(url) == set(JOBS.c.keys())

    async def scenario(table: JobTable) -> None:
        done, cancelled, queued = await table.page(None, 9, newest_first=False)
        assert [job.status for job in (done, cancelled, queued)] == ["completed", "failed", "queued"]
        for job in (done, cancelled, queued):
            assert (job.cost, job.fingerprint, job.seconds, job.metadata) == (None, None, None, None)
        assert done.files == FILES_2

    run(replace(SETTINGS, database_url=url), scenario)


def test_rows_of_version_1_are_claimed_and_do_not_spoil_the_estimates(url: str) -> None:
    make_version_1(url)
    prepare(url)

    async def scenario(table: JobTable) -> None:
        assert await table.finished() == []
        assert [(job.seq, job.cost) for job in await table.active()] == [(3, None)]
        assert (await claimed(table))[0].seq == 3
        await submitted(table)
        assert [job.cost for job in await table.active()] == [None, COST]

    run(replace(SETTINGS, database_url=url), scenario)


def test_another_kind_of_database_is_refused() -> None:
    with pytest.raises(ValueError, match="database_url: got 'mysql', expected sqlite or postgresql"):
        prepare("mysql://localhost/jobs")


def columns(url: str) -> set[str]:
    engine = sync_engine(url)
    names = {column["name"] for column in inspect(engine).get_columns("jobs")}
    engine.dispose()
    return names


def test_a_table_of_version_2_lists_its_files_as_artifacts(url: str) -> None:
    make_version_2(url)
    assert {"media", "media_bytes"} <= columns(url)
    assert prepare(url) == PREFIX_2.partition("/")[0], "the folder of its files"
    assert columns(url) == set(JOBS.c.keys())

    async def scenario(table: JobTable) -> None:
        done, cancelled, queued = await table.page(None, 9, newest_first=False)
        assert [artifact.name for artifact in done.artifacts] == list(OF_A_VIDEO)
        assert [artifact.media_type for artifact in done.artifacts] == [MEDIA_TYPES[name] for name in OF_A_VIDEO]
        assert done.files == FILES_2
        assert [artifact.suffix for artifact in done.artifacts] == [".mp4", ".thumbnail.jpg", ".spritesheet.jpg"]
        assert {artifact.size for artifact in done.artifacts} == {None}, "it stored their sum only"
        assert (done.status, done.params["prompt"], done.idempotency_key) == ("completed", "a red ball", "done")
        assert cancelled.artifacts == queued.artifacts == []
        assert await table.tokens_in_use() == {PREFIX_2.rpartition("/")[2]}
        assert [job.stage_durations["denoiser"] for job in await table.finished()] == [2.0]
        claim, owner = await started(table)
        assert claim.id == queued.id
        assert await table.complete(claim, video(owner), DURATIONS)
        assert (await completed(table)).seq == queued.seq + 1

    run(replace(SETTINGS, database_url=url), scenario)


def test_a_table_of_version_3_takes_inputs_and_keeps_its_rows(url: str) -> None:
    make_version_3(url)
    assert "input_reference" not in columns(url)
    assert prepare(url) == PREFIX_3.partition("/")[0]
    assert columns(url) == set(JOBS.c.keys())
    engine = sync_engine(url)
    assert "jobs_by_input" in {index["name"] for index in inspect(engine).get_indexes("jobs")}
    engine.dispose()

    async def scenario(table: JobTable) -> None:
        jobs = await table.page(None, 9, newest_first=False)
        assert [job.status for job in jobs] == ["completed", "failed", "queued"]
        assert [job.files for job in jobs] == [FILES_3, [], []]
        for job in jobs:
            assert (job.input_reference, job.input_sha256, job.remixed_from_video_id) == (None, None, None)
        assert await table.inputs_in_use() == set()
        stored = StoredInput("video", "folder/inputs/f.0", 5, 64, 48, 9, "video_0")
        new = await submitted(table, NEW._replace(input_reference=stored, input_sha256="f"))
        assert (new.seq, new.input_reference) == (4, stored)
        assert await table.input_with("f") == stored
        assert [(await claimed(table))[0].seq, await table.input_with("e")] == [3, None]

    run(replace(SETTINGS, database_url=url), scenario)


def test_jobs_of_the_previous_release_have_no_events_and_new_ones_may(url: str) -> None:
    make_version_4(url)
    assert "webhook_url" not in columns(url)
    assert prepare(url) == FOLDER_4
    assert columns(url) == set(JOBS.c.keys())
    engine = sync_engine(url)
    assert "jobs_by_webhook" in {index["name"] for index in inspect(engine).get_indexes("jobs")}
    engine.dispose()

    async def scenario(table: JobTable) -> None:
        jobs = await table.page(None, 9, newest_first=False)
        assert [job.status for job in jobs] == ["completed", "failed", "queued"]
        assert [(job.webhook_url, job.webhook_due_at, job.webhook_attempts) for job in jobs] == [(None, None, 0)] * 3
        assert (jobs[0].input_reference is not None, jobs[2].remixed_from_video_id) == (True, jobs[0].id)
        claim, owner = await started(table)
        assert await table.complete(claim, video(owner), DURATIONS)
        assert await table.outbox.wait_s() is None
        await completed(table, NEW._replace(webhook_url="https://hooks.example.com"))
        assert [delivery.seq for delivery in await table.outbox.claim(9)] == [4]

    run(replace(SETTINGS, database_url=url), scenario)


@pytest.mark.parametrize("step_cache", ["0.0", "0.1"])
def test_a_queued_job_with_a_field_that_is_gone_runs_exactly(tmp_path: Path, step_cache: str) -> None:
    """An approximation of an earlier release, for which it asked or not."""
    url = AppArgs(data_dir=str(tmp_path)).job_settings().database_url
    make(url, VERSION_3.replace('"step_cache": 0.0', f'"step_cache": {step_cache}'))
    prepare(url)
    ran: list[GenerationParams] = []

    class Recording(FakeGraph):
        async def run(self, *given: Any, **options: Any) -> AsyncGenerator[Any, None]:
            ran.append(given[0])
            async for item in super().run(*given, **options):
                yield item

    async def scenario(runner: JobRunner, table: JobTable, _: MediaStore) -> None:
        graph: Any = Recording(DENOISING, FINISHED)
        runner._graph = graph
        await runner.work()
        jobs = await table.page(None, 9, newest_first=False)
        assert [job.status for job in jobs] == ["completed", "failed", "completed"]
        for job in jobs:
            record = record_of(job, Schedule(Rates([]), []))
            assert (record.prompt, record.velocity_reuse, record.profile) == ("a red ball", 0, None)

    with_runner(tmp_path, scenario)
    assert [params.label for params in ran] == ["exact"]
    assert "step_cache" not in ran[0].model_dump()


def test_processes_that_start_together_migrate_a_table_once(url: str) -> None:
    make_version_2(url)
    with ThreadPoolExecutor(4) as processes:
        ids = set(processes.map(prepare, [url] * 4))
    assert ids == {PREFIX_2.partition("/")[0]}
    assert [job.files for job in run(replace(SETTINGS, database_url=url), first_page)] == [FILES_2, [], []]


async def first_page(table: JobTable) -> list[Job]:
    return await table.page(None, 9, newest_first=False)


def test_the_files_of_version_2_are_served_swept_around_and_removed(tmp_path: Path) -> None:
    url, store = f"sqlite:///{tmp_path}/jobs.sqlite", tmp_path / "media"
    make_version_2(url)
    orphan = f"{PREFIX_2.partition('/')[0]}/{'a' * 32}.mp4"
    for name in (*FILES_2, orphan):
        (store / name).parent.mkdir(parents=True, exist_ok=True)
        (store / name).write_bytes(name.encode())
        os.utime(store / name, (0, 0))
    settings = replace(SETTINGS, database_url=url)

    async def scenario(runner: JobRunner, videos: Videos) -> None:
        (job, *_) = await videos.table.page(None, 9, newest_first=False)
        for name, file in zip(OF_A_VIDEO, FILES_2, strict=True):
            content = await videos.content(job.id, name)
            assert (content.media_type, content.etag, content.size) == (MEDIA_TYPES[name], file, len(file))
            assert content.filename == job.id + file.removeprefix(PREFIX_2)
            assert b"".join([block async for block in content.read(0, content.size)]) == file.encode()
        await runner.files.remove_orphans(settings.retention_s)
        assert not (store / orphan).exists()
        assert all((store / name).exists() for name in FILES_2)
        await videos.delete(job.id)
        assert not any((store / name).exists() for name in FILES_2)

    with_runner_and_videos(settings, str(store), scenario)


def test_the_files_of_version_2_expire_with_their_record(tmp_path: Path) -> None:
    url, store = f"sqlite:///{tmp_path}/jobs.sqlite", tmp_path / "media"
    make_version_2(url)
    for name in FILES_2:
        (store / name).parent.mkdir(parents=True, exist_ok=True)
        (store / name).write_bytes(b"x")
    with closing(sqlite3.connect(tmp_path / "jobs.sqlite")) as connection, connection:
        connection.execute("UPDATE jobs SET expires_at = 1 WHERE status = 'completed'")

    async def scenario(runner: JobRunner, videos: Videos) -> None:
        await runner.files.remove_expired()
        assert [job.status for job in await videos.table.page(None, 9, newest_first=False)] == ["failed", "queued"]
        assert not any((store / name).exists() for name in FILES_2)

    with_runner_and_videos(replace(SETTINGS, database_url=url), str(store), scenario)


def with_runner_and_videos(
    settings: JobSettings, media_url: str, scenario: Callable[[JobRunner, Videos], Awaitable[None]]
) -> None:
    """A scenario on a runner that has no stages, and on the videos beside it."""
    stage: Any = SimpleNamespace(options=lambda **_: None)

    async def scene() -> None:
        runner = JobRunner(Stages(*[stage] * len(Stages._fields)), settings, media_url, "other")
        videos = Videos(settings, MediaStore(media_url), "m", runner._folder)
        await scenario(runner, videos)
        await runner.close()
        await videos.table.close()

    asyncio.run(scene())
