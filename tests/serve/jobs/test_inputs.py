"""The pictures and clips that jobs start from: stored once, shared, and removed with the last job that names them."""

import asyncio
import hashlib
import os
import time
from collections.abc import AsyncGenerator
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import pytest
from job_runners import DENOISING, FINISHED, database_id, files, with_runner
from job_tables import COST, NEW, SETTINGS, change, read, run, submitted

from cosmos3_models.media.reading import MediaInfo
from cosmos3_models.params import GenerationDefaults
from serve.errors import InputLost, MediaUnavailable
from serve.graph.graph import Reference
from serve.inputs.inspection import CheckedReference
from serve.inputs.uploads import Upload
from serve.jobs import retries
from serve.jobs.files import ORPHAN_AGE_S, JobFiles
from serve.jobs.job import Caller, InputGone, Job, JobSettings, NewJob, StoredInput
from serve.jobs.media_store import MediaStore
from serve.jobs.migrations import prepare
from serve.jobs.runner import JobRunner
from serve.jobs.table import JobTable
from serve.jobs.videos import Videos
from serve.jobs.wanted import Wanted
from serve.schema import VideoRequest

pytest_plugins = ["job_table_fixtures"]

MEDIA = MediaInfo("image", 64, 48, 1)
DATA = b"a picture" * 1000


def uploaded(folder: Path, data: bytes = DATA) -> Upload:
    path = folder / f"upload-{len(data)}"
    path.write_bytes(data)
    return Upload(path, hashlib.sha256(data).hexdigest(), len(data))


def starting_from(upload: Upload, file: str, shared: bool = False) -> NewJob:
    stored = StoredInput.of(CheckedReference(upload, MEDIA), file)
    return NEW._replace(input_reference=stored, input_sha256=upload.sha256, shares_input=shared)


def new_job(upload: Upload, key: str | None = None) -> tuple[NewJob, Wanted]:
    request = VideoRequest(prompt="x")
    wanted = Wanted(request, request.params(GenerationDefaults()), COST, CheckedReference(upload, MEDIA))
    return wanted.job("m", Caller(key)), wanted


async def stored_job(table: JobTable, jobs_files: JobFiles, upload: Upload) -> Job:
    return await submitted(table, starting_from(upload, *await jobs_files.input_of(upload)))


def test_an_input_is_stored_once_and_goes_with_its_last_job(settings: JobSettings, tmp_path: Path) -> None:
    upload, media = uploaded(tmp_path), MediaStore(str(tmp_path / "media"))

    async def scenario(table: JobTable) -> None:
        job_files = JobFiles(table, media, "db")
        first = await stored_job(table, job_files, upload)
        second = await stored_job(table, job_files, upload)
        other = await stored_job(table, job_files, uploaded(tmp_path, b"another"))
        assert first.input_reference == second.input_reference
        assert len(files(tmp_path)) == 2
        assert await job_files.read_input(second) == DATA
        deleted = await table.delete(first.id)
        assert deleted is not None
        assert deleted.files == []
        deleted = await table.delete(second.id)
        assert deleted is not None
        assert second.input_reference is not None
        assert deleted.files == [second.input_reference.file]
        assert await table.inputs_in_use() == {other.input_reference and other.input_reference.file}

    run(settings, scenario)


def test_a_name_that_is_being_removed_never_comes_back(settings: JobSettings, tmp_path: Path) -> None:
    """A submission finds the file of a job that is deleted before the submission is stored."""
    upload, media = uploaded(tmp_path), MediaStore(str(tmp_path / "media"))

    async def scenario(table: JobTable) -> None:
        job_files = JobFiles(table, media, "db")
        first = await stored_job(table, job_files, upload)
        file, shared = await job_files.input_of(upload)
        assert shared
        deleted = await table.delete(first.id)
        assert deleted is not None
        assert deleted.files == [file]
        with pytest.raises(InputGone):
            await table.submit(starting_from(upload, file, shared=True))
        again, shared = await job_files.input_of(upload)
        assert (again != file, shared) == (True, False)
        job = await submitted(table, starting_from(upload, again))
        await media.remove(*deleted.files)  # only now
        assert await job_files.read_input(job) == DATA

    run(settings, scenario)


def test_submissions_and_deletions_at_once_leave_every_job_its_input_and_no_file_besides(
    settings: JobSettings, tmp_path: Path
) -> None:
    upload, media = uploaded(tmp_path), MediaStore(str(tmp_path / "media"))
    crowd = replace(settings, max_queued_jobs=1000)

    async def scene() -> None:
        first, second = (Videos(crowd, media, "m", "db") for _ in range(2))  # two replicas

        async def come_and_go(videos: Videos, times: int) -> None:
            for _ in range(times):
                job = await videos._submit_with_input(*new_job(upload))
                assert job is not None
                assert await videos._files.read_input(job) == DATA
                await (first if job.seq % 2 else second).delete(job.id)

        await asyncio.gather(*(come_and_go(videos, 8) for videos in (first, second) for _ in range(4)))
        assert await first.table.page(None, 9, newest_first=True) == []
        assert files(tmp_path) == set()
        for videos in (first, second):
            await videos.table.close()

    asyncio.run(scene())


def test_an_input_expires_with_the_last_of_its_records(settings: JobSettings, tmp_path: Path) -> None:
    upload, media = uploaded(tmp_path), MediaStore(str(tmp_path / "media"))

    async def scenario(table: JobTable) -> None:
        job_files = JobFiles(table, media, "db")
        jobs = [await stored_job(table, job_files, upload) for _ in range(3)]
        await change(table, jobs[0], expires_at=0.0)
        await job_files.remove_expired()
        assert len(files(tmp_path)) == 1
        for job in jobs[1:]:
            await change(table, job, expires_at=0.0)
        await job_files.remove_expired()
        assert files(tmp_path) == set()

    run(settings, scenario)


def test_a_request_for_which_there_is_no_room_leaves_no_file(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/jobs.sqlite"
    prepare(url)
    settings = replace(SETTINGS, database_url=url, max_queued_jobs=1)

    async def scene() -> None:
        videos = Videos(settings, MediaStore(str(tmp_path / "media")), "m", "db")
        job = await videos._submit_with_input(*new_job(uploaded(tmp_path), "k"))
        assert job is not None
        one = files(tmp_path)
        other = uploaded(tmp_path, b"another")
        assert await videos._submit_with_input(*new_job(other)) is None
        assert (await videos._submit_with_input(*new_job(other, "k"))) == job, "the caller compares the fingerprints"
        assert files(tmp_path) == one
        await videos.table.close()

    asyncio.run(scene())


def test_a_file_that_is_lost_from_the_store_is_stored_again_for_the_next_job(tmp_path: Path) -> None:
    async def scenario(runner: JobRunner, table: JobTable, media: MediaStore) -> None:
        upload = uploaded(tmp_path)
        first = await stored_job(table, runner.files, upload)
        assert first.input_reference is not None
        await media.remove(first.input_reference.file)
        second = await stored_job(table, runner.files, upload)
        assert await runner.files.read_input(second) == DATA
        with pytest.raises(InputLost, match="the image that the video starts from is no longer stored"):
            await runner.files.read_input(first)
        (tmp_path / "media" / str(second.input_reference and second.input_reference.file)).write_bytes(bytes(len(DATA)))
        with pytest.raises(InputLost, match="damaged"):
            await runner.files.read_input(second)

    with_runner(tmp_path, scenario)


def test_old_inputs_without_a_record_are_swept_and_all_others_stay(tmp_path: Path) -> None:
    async def scenario(runner: JobRunner, table: JobTable, media: MediaStore) -> None:
        folder = f"{database_id(tmp_path)}/inputs"
        used = await stored_job(table, runner.files, uploaded(tmp_path))
        assert used.input_reference is not None
        orphan, part, young = (f"{folder}/{'a' * 64}.0123{end}" for end in ("", ".89ab.part", "4567"))
        for name in (orphan, part, young):
            await media.write(name, b"x")
        for name in files(tmp_path) - {young}:
            old = time.time() - ORPHAN_AGE_S - 1
            os.utime(tmp_path / "media" / name, (old, old))
        await runner.files.remove_orphans(0)
        assert files(tmp_path) == {used.input_reference.file, young}

    with_runner(tmp_path, scenario)


# ---- the store


@pytest.mark.parametrize("scheme", ["folder", "memory", "dirs"])
def test_a_file_from_disk_is_whole_or_absent_in_every_kind_of_store(
    tmp_path: Path, scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    urls = {"folder": str(tmp_path / "media"), "memory": "memory://copies", "dirs": f"dir::file://{tmp_path}/dirs"}
    store = MediaStore(urls[scheme])
    source = tmp_path / "source"
    source.write_bytes(DATA)
    visible: list[object] = []
    files_of_store = store._files
    send = files_of_store._send

    async def scenario() -> None:
        def watched(path: str, data: Any) -> None:
            send(path, data)
            visible.append(files_of_store.size("ours/inputs/a"))

        monkeypatch.setattr(files_of_store, "_send", watched)
        await store.write_file("ours/inputs/a", source)
        assert await store.size("ours/inputs/a") == len(DATA)
        blocks = [block async for block in store.read("ours/inputs/a", 0, len(DATA))]
        assert b"".join(blocks) == DATA
        assert await store.older_than(-1, "ours/inputs") == ["ours/inputs/a"], "and nothing unfinished"

        def fail(*_: Any) -> None:
            raise OSError("the disk is full")

        monkeypatch.setattr("shutil.copyfileobj", fail)
        monkeypatch.setattr(files_of_store, "_send", fail)
        with pytest.raises(MediaUnavailable):
            await store.write_file("ours/inputs/b", source)
        assert await store.older_than(-1, "ours/inputs") == ["ours/inputs/a"]

    asyncio.run(scenario())
    assert visible in ([], [None]), "it has its name only once it is whole"
    fsspec.filesystem("memory").store.clear()


# ---- the runner


class ReadingGraph:
    """A graph that reads its reference, as the encoder's stage does, and then finishes."""

    def __init__(self) -> None:
        self.read: list[tuple[str, bytes]] = []

    async def run(self, *_: Any, reference: Reference) -> AsyncGenerator[Any, None]:
        self.read.append((reference.kind, await reference.read()))
        yield DENOISING
        yield FINISHED


async def worked(runner: JobRunner, table: JobTable, upload: Upload) -> tuple[Job, ReadingGraph]:
    """A job with an input that the runner has worked on, and the graph that it used."""
    graph: Any = ReadingGraph()
    runner._graph = graph
    job = await stored_job(table, runner.files, upload)
    await runner.work()
    return await read(table, job), graph


def test_a_runner_gives_the_graph_the_stored_bytes_and_keeps_them_after_the_job(tmp_path: Path) -> None:
    async def scenario(runner: JobRunner, table: JobTable, _: MediaStore) -> None:
        job, graph = await worked(runner, table, uploaded(tmp_path))
        assert (job.status, graph.read) == ("completed", [("image", DATA)])
        assert await runner.files.read_input(job) == DATA, "a remix may start from it"

    with_runner(tmp_path, scenario)


def test_a_job_whose_input_is_lost_fails_with_a_code_of_its_own(tmp_path: Path) -> None:
    async def scenario(runner: JobRunner, table: JobTable, media: MediaStore) -> None:
        job = await stored_job(table, runner.files, uploaded(tmp_path))
        assert job.input_reference is not None
        await media.remove(job.input_reference.file)
        graph: Any = ReadingGraph()
        runner._graph = graph
        await runner.work()
        job = await read(table, job)
        assert (job.status, job.error_code) == ("failed", "input_lost")
        assert job.error_message == "the image that the video starts from is no longer stored"

    with_runner(tmp_path, scenario)


def test_an_input_waits_for_its_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retries, "STORE_WAITS_S", (0.0, 0.001))
    refusals = iter([True] * 5)

    async def scenario(runner: JobRunner, table: JobTable, _: MediaStore) -> None:
        block = runner._media._files.read

        def refuse(*where: Any) -> bytes | None:
            if next(refusals, False):
                raise OSError("the store is away")
            return block(*where)

        monkeypatch.setattr(runner._media._files, "read", refuse)
        job, graph = await worked(runner, table, uploaded(tmp_path))
        assert (job.status, graph.read) == ("completed", [("image", DATA)])

    with_runner(tmp_path, scenario)
