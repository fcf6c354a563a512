"""The files of jobs: stored before their record, removed with it, and swept where there is no record."""

import asyncio
import math
import os
import time
from pathlib import Path

import pytest
from job_runners import ARTIFACTS, DENOISING, FINISHED, ONE_STEP, database_id, files, made, with_runner
from job_tables import change

from serve.errors import MediaUnavailable
from serve.jobs import retries
from serve.jobs.files import ORPHAN_AGE_S
from serve.jobs.job import StoredArtifact
from serve.jobs.media_store import MediaStore
from serve.jobs.runner import JobRunner
from serve.jobs.table import JobTable

WEEK_S = 604_800


async def finish(table: JobTable, media: MediaStore, folder: str) -> set[str]:
    """A job whose artifacts are stored; the names of its files."""
    await table.submit(ONE_STEP)
    job = await table.claim()
    assert job is not None
    assert job.owner is not None
    await table.start(job.owner)
    stored = [StoredArtifact.of(artifact, f"{folder}/{job.owner}") for artifact in ARTIFACTS]
    for artifact in stored:
        await media.write(artifact.file, b"x")
    assert await table.complete(job, stored, {"denoiser": 1.0})
    return {artifact.file for artifact in stored}


def age(path: Path, age_s: float) -> None:
    old = time.time() - age_s
    os.utime(path, (old, old))


def test_record_and_files_expire_together(tmp_path: Path) -> None:
    async def scenario(runner: JobRunner, table: JobTable, media: MediaStore) -> None:
        folder = database_id(tmp_path)
        await finish(table, media, folder)
        (older,) = await table.page(None, 9, newest_first=True)
        await change(table, older, expires_at=0.0)
        younger = await finish(table, media, folder)
        await runner.files.remove_expired()
        assert [set(job.files) for job in await table.page(None, 9, newest_first=True)] == [younger]
        assert files(tmp_path) == younger

    with_runner(tmp_path, scenario)


def test_old_files_without_a_record_are_swept_and_all_others_stay(tmp_path: Path) -> None:
    async def scenario(runner: JobRunner, table: JobTable, media: MediaStore) -> None:
        folder = database_id(tmp_path)
        used = await finish(table, media, folder)
        orphans = [f"{folder}/{'a' * 32}.mp4", f"{folder}/{'b' * 32}.mp4.0123.part"]
        others = [
            f"{folder}/{'c' * 32}.mp4",  # which is new
            "holiday.mp4",
            f"{'d' * 32}.mp4",  # of a release that had no folders
            f"{'e' * 32}/{'f' * 32}.mp4",  # another database's
        ]
        for name in (*orphans, *others):
            await media.write(name, b"x")
        for name in files(tmp_path) - {others[0]}:
            age(tmp_path / "media" / name, ORPHAN_AGE_S + 1)
        await runner.files.remove_orphans(runner._settings.retention_s)
        assert files(tmp_path) == {*others, *used}

    with_runner(tmp_path, scenario, retention_s=0.2)


def test_a_database_restored_to_an_earlier_state_loses_no_file_that_a_record_may_yet_name(tmp_path: Path) -> None:
    """The rows of the last hours are missing until a newer copy is put in place; their videos must still be there."""

    async def scenario(runner: JobRunner, table: JobTable, media: MediaStore) -> None:
        stored = await finish(table, media, database_id(tmp_path))
        (job,) = await table.page(None, 9, newest_first=True)
        await table.delete(job.id)
        for name in files(tmp_path):
            age(tmp_path / "media" / name, ORPHAN_AGE_S + 60)
        await runner.files.remove_orphans(runner._settings.retention_s)
        assert files(tmp_path) == stored

    with_runner(tmp_path, scenario, retention_s=WEEK_S)


def test_a_server_leaves_the_videos_of_another_one_in_the_same_store_alone(tmp_path: Path) -> None:
    media_url = str(tmp_path / "media")
    finished: list[set[str]] = []

    async def make(_: JobRunner, table: JobTable, media: MediaStore) -> None:
        finished.append(await finish(table, media, database_id(tmp_path / "production")))
        for name in files(tmp_path):
            age(tmp_path / "media" / name, 10 * WEEK_S)

    async def sweep(runner: JobRunner, *_: object) -> None:
        await runner.files.remove_orphans(runner._settings.retention_s)
        assert files(tmp_path) == finished[0]

    with_runner(tmp_path / "production", make, media_url=media_url, retention_s=0.2)
    with_runner(tmp_path / "staging", sweep, media_url=media_url, retention_s=0.2)


class Refusing(MediaStore):
    """A store that refuses the first so many writes."""

    def __init__(self, url: str, refusals: float) -> None:
        super().__init__(url)
        self.refusals = refusals
        self.refused = asyncio.Event()

    async def write(self, name: str, data: bytes) -> None:
        self.refusals -= 1
        if self.refusals >= 0:
            self.refused.set()
            raise MediaUnavailable("the media store does not answer; try again")
        await super().write(name, data)


def test_a_finished_video_waits_for_its_store_for_as_long_as_it_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retries, "STORE_WAITS_S", (0.0, 0.001))

    async def scenario(runner: JobRunner, table: JobTable, _: MediaStore) -> None:
        runner._media = Refusing(str(tmp_path / "media"), refusals=200)
        job = await made(runner, table, DENOISING, FINISHED)
        assert (job.status, job.attempts) == ("completed", 1), "it was not denoised again"
        assert files(tmp_path) == set(job.files)

    with_runner(tmp_path, scenario)


def test_a_store_that_stays_away_ends_the_job_at_its_deadline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retries, "STORE_WAITS_S", (0.01,))

    async def scenario(runner: JobRunner, table: JobTable, _: MediaStore) -> None:
        runner._media = store = Refusing(str(tmp_path / "media"), refusals=math.inf)
        making = asyncio.create_task(made(runner, table, DENOISING, FINISHED))
        await store.refused.wait()
        (job,) = await table.page(None, 9, newest_first=True)
        await change(table, job, deadline_at=0.0)
        job = await making
        assert (job.status, job.error_code, job.attempts) == ("failed", "deadline_exceeded", 1)

    with_runner(tmp_path, scenario)
