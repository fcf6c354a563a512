"""Previews of jobs: in the store, in the row, as events and as content, the newest alone."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from fakes import FakeGraph
from job_runners import ARTIFACTS, DENOISING, FINISHED, files, with_runner
from job_tables import COST, NEW, claimed, read, started, submitted

from serve.errors import NotFound
from serve.estimates.observed_jobs import ActiveJob, Preview
from serve.estimates.schedule import Rates, Schedule
from serve.graph.artifacts import Artifact
from serve.jobs import runner as runner_module
from serve.jobs.job import ClaimProgress, Job, StoredArtifact
from serve.jobs.media_store import MediaStore
from serve.jobs.records import events_of
from serve.jobs.runner import JobRunner
from serve.jobs.table import JobTable
from serve.jobs.videos import Videos
from serve.jobs.watcher import JobState

VIDEO = tuple(artifact for artifact in ARTIFACTS if artifact.name == "video")


def step(done: int) -> dict[str, Any]:
    return DENOISING | {"step": done, "steps": 4}


def preview(done: int, jpeg: bytes) -> dict[str, Any]:
    return {"type": "preview", "step": done, "steps": 4, "elapsed_s": 1.0, "preview": jpeg}


async def until_listed(table: JobTable, job: Job, done: int) -> Job:
    """The job, once its row lists the preview after a step."""
    async with asyncio.timeout(20):
        while (found := await read(table, job)).preview is None or found.preview.step != done:
            await asyncio.sleep(0.01)
    return found


async def content_of(videos: Videos, job: Job, variant: Any) -> bytes:
    content = await videos.content(job.id, variant)
    return b"".join([block async for block in content.read(0, content.size)])


def test_a_job_shows_its_newest_preview_until_it_is_deleted(tmp_path: Path) -> None:
    async def scenario(runner: JobRunner, table: JobTable, media: MediaStore) -> None:
        videos = Videos(runner._settings, media, "m", runner._folder)
        job = await submitted(table, NEW)

        def shown(done: int, jpeg: bytes) -> Any:
            async def check() -> None:
                now = await until_listed(table, job, done)
                assert (now.status, now.step, now.main) == ("in_progress", done, None)
                assert await content_of(videos, job, "preview") == jpeg
                with pytest.raises(NotFound, match="the video has no content: it is in_progress"):
                    await videos.content(job.id)
                while len(files(tmp_path)) > 1:  # the one before it is removed next
                    await asyncio.sleep(0.01)

            return check

        graph: Any = FakeGraph(
            step(0),
            step(1),
            preview(1, b"one"),
            shown(1, b"one"),
            step(2),
            preview(2, b"two"),
            shown(2, b"two"),
            FINISHED,
        )
        runner._graph = graph
        await runner.work()
        ended = await read(table, job)
        assert [artifact.name for artifact in ended.artifacts] == [*(each.name for each in ARTIFACTS), "preview"]
        assert await content_of(videos, job, None) == b"video"
        assert await content_of(videos, job, "preview") == b"two"
        assert {artifact.file for artifact in ended.artifacts} == files(tmp_path)
        await runner.files.remove_orphans(0)
        await videos.delete(job.id)
        assert files(tmp_path) == set()
        await videos.table.close()

    with_runner(tmp_path, scenario)


def test_a_preview_without_a_job_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its job has been deleted, or another runner has it."""
    monkeypatch.setattr(
        runner_module, "HEARTBEAT_PERIOD_S", 1000
    )  # which would stop the job before its preview is made

    async def scenario(runner: JobRunner, table: JobTable, _: MediaStore) -> None:
        job = await submitted(table, NEW)

        async def deleted() -> None:
            await table.delete(job.id)

        async def nothing_is_left() -> None:
            await asyncio.gather(*runner._background)
            assert files(tmp_path) == set()

        graph: Any = FakeGraph(step(0), deleted, preview(1, b"one"), nothing_is_left, FINISHED)
        runner._graph = graph
        await runner.work()
        assert files(tmp_path) == set()

    with_runner(tmp_path, scenario)


def test_a_preview_that_cannot_be_stored_costs_nothing_but_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(runner: JobRunner, table: JobTable, _: MediaStore) -> None:
        write = runner._media.write

        async def refuse(name: str, data: bytes) -> None:
            if data == b"one":
                raise OSError("disk full")
            await write(name, data)

        monkeypatch.setattr(runner._media, "write", refuse)
        job = await submitted(table, NEW)
        graph: Any = FakeGraph(step(0), preview(1, b"one"), FINISHED)
        runner._graph = graph
        await runner.work()
        ended = await read(table, job)
        assert ended.status == "completed"
        assert ended.preview is None

    with_runner(tmp_path, scenario)


def test_the_next_heartbeat_writes_the_progress_that_a_slow_preview_has_set_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(runner: JobRunner, table: JobTable, _: MediaStore) -> None:
        job, show = await submitted(table, NEW), runner._table.show
        asked, may_show = asyncio.Event(), asyncio.Event()

        async def slow(*args: Any) -> bool:
            asked.set()
            await may_show.wait()
            return await show(*args)

        async def written(done: int) -> Job:
            async with asyncio.timeout(20):
                while (found := await read(table, job)).step != done:
                    await asyncio.sleep(0.01)
            return found

        async def beaten() -> None:
            await written(3)
            may_show.set()
            await until_listed(table, job, 1)

        async def caught_up() -> None:
            assert (await written(3)).preview == Preview(1, shown_at=1)

        monkeypatch.setattr(runner._table, "show", slow)
        graph: Any = FakeGraph(step(0), step(1), preview(1, b"one"), asked.wait, step(3), beaten, caught_up, FINISHED)
        runner._graph = graph
        await runner.work()
        assert (await read(table, job)).status == "completed", "else the script ended early"

    with_runner(tmp_path, scenario, lease_s=3600)  # no renewal of a lease writes it


def test_a_preview_that_is_on_its_way_at_the_end_is_the_one_of_the_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(runner: JobRunner, table: JobTable, _: MediaStore) -> None:
        job, show, written = await submitted(table, NEW), runner._table.show, asyncio.Event()

        async def slow(*args: Any) -> bool:
            shown = await show(*args)
            if args[1].step == 2:
                written.set()
                await asyncio.sleep(0.3)  # the answer is on its way
            return shown

        async def first_is_kept() -> None:
            async with asyncio.timeout(20):
                while next(iter(runner._claims.values())).preview is None:
                    await asyncio.sleep(0.01)

        monkeypatch.setattr(runner._table, "show", slow)
        script = (step(0), preview(1, b"one"), first_is_kept, step(2), preview(2, b"two"), written.wait, FINISHED)
        graph: Any = FakeGraph(*script)
        runner._graph = graph
        await runner.work()
        await asyncio.wait([asyncio.create_task(asyncio.sleep(0)), *runner._background])
        ended = await read(table, job)
        assert ended.preview == Preview(2, shown_at=2)
        assert {artifact.file for artifact in ended.artifacts} == files(tmp_path)

    with_runner(tmp_path, scenario)


def numbers(job: ActiveJob) -> list[tuple[int, str, int]]:
    state = JobState(job, Schedule(Rates([]), [job]).estimate(job.seq))
    return [(number, event["type"], event["step"]) for number, event in events_of(state, None)]


def test_the_number_of_a_preview_follows_that_of_the_step_at_which_it_was_stored() -> None:
    job = ActiveJob(1, "in_progress", "denoiser", 3, 4, COST, 1.0, attempts=1)
    assert numbers(job) == [(1000 + 2 * done, "progress", done) for done in range(4)]
    shown = numbers(job._replace(preview=Preview(1, shown_at=2)))
    assert [each for each in shown if each[1] == "preview"] == [(1005, "preview", 1)]
    assert shown == sorted(shown)
    assert {number for number, *_ in shown} > {number for number, *_ in numbers(job)}
    later = numbers(job._replace(preview=Preview(2, shown_at=3)))[-2:]
    assert later == [(1006, "progress", 3), (1007, "preview", 2)], "a client that has seen the first gets the second"


def test_a_release_without_previews_can_read_what_a_job_without_any_has_stored() -> None:
    artifact = StoredArtifact.of(Artifact.of("video", b"video"), "folder/token")
    assert artifact.stored == {"name": "video", "media_type": "video/mp4", "size": 5, "file": "folder/token.mp4"}
    one = StoredArtifact.of_preview(b"jpeg", "folder/token", 3)._replace(shown_at=4)
    assert StoredArtifact(**one.stored) == one


def test_a_claim_that_is_no_longer_its_owners_shows_nothing(tmp_path: Path) -> None:
    async def scenario(_: JobRunner, table: JobTable, __: MediaStore) -> None:
        job = await submitted(table, NEW)
        _, owner = await started(table)
        shown = StoredArtifact.of_preview(b"jpeg", f"folder/{owner}", 1)._replace(shown_at=1)
        assert await table.show(owner, shown, ClaimProgress("denoiser", 1))
        assert not await table.show("another", shown, ClaimProgress("denoiser", 3))
        assert (await read(table, job)).step == 1
        await table.release(owner)
        assert (await claimed(table))[0].artifacts == [shown], "the next claim replaces it"

    with_runner(tmp_path, scenario)
