"""What a runner does besides its jobs: record and file go together, and files without a record go too."""

import asyncio
import os
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from serve.app import AppArgs
from serve.jobs import JobTable, NewJob
from serve.runner import ORPHAN_AGE_S, JobRunner
from serve.storage import MediaStore

NEW = NewJob(model="m", params={}, cost={}, steps=1)


def with_runner(folder: Path, scenario: Callable[[JobRunner, JobTable, MediaStore], Awaitable[None]]) -> None:
    """A scenario on a runner that is given no work."""
    args = AppArgs(data_dir=str(folder), retention_s=0.2)
    stage: Any = SimpleNamespace(options=lambda **_: None)

    async def scene() -> None:
        runner = JobRunner(stage, stage, stage, stage, args.job_settings(), args.media())
        table = JobTable(args.job_settings())
        await scenario(runner, table, MediaStore(args.media()))
        await table.close()
        await runner.close()

    asyncio.run(scene())


async def finish(table: JobTable, media: MediaStore) -> str:
    """A job whose video is stored; what its files' names begin with."""
    await table.submit(NEW)
    job = await table.claim()
    assert job is not None
    assert job.owner is not None
    await table.start(job.owner)
    for suffix in (".mp4", ".thumbnail.jpg", ".spritesheet.jpg"):
        await media.write(job.owner + suffix, b"x")
    assert await table.complete(job.owner, job.owner, 3, {"denoiser": 1.0})
    return job.owner


def test_record_and_files_expire_together(tmp_path: Path) -> None:
    async def scenario(runner: JobRunner, table: JobTable, media: MediaStore) -> None:
        await finish(table, media)
        await asyncio.sleep(0.3)
        kept = await finish(table, media)
        await runner.remove_expired()
        assert [job.media for job in await table.page(None, 9, newest_first=True)] == [kept]
        assert {path.name.split(".")[0] for path in (tmp_path / "media").iterdir()} == {kept}

    with_runner(tmp_path, scenario)


def test_old_files_without_a_record_are_swept_and_all_others_stay(tmp_path: Path) -> None:
    async def scenario(runner: JobRunner, table: JobTable, media: MediaStore) -> None:
        kept = await finish(table, media)
        orphans = [f"{'a' * 32}.mp4", f"{'b' * 32}.mp4.part"]
        others = ["holiday.mp4", f"{'c' * 32}.mp4"]
        for name in (*orphans, *others):
            await media.write(name, b"x")
        old = time.time() - ORPHAN_AGE_S - 1
        for path in (tmp_path / "media").iterdir():
            if path.name != others[1]:  # which is new
                os.utime(path, (old, old))
        await runner.remove_orphans()
        left = {path.name for path in (tmp_path / "media").iterdir()}
        assert left == {*others, *(kept + suffix for suffix in (".mp4", ".thumbnail.jpg", ".spritesheet.jpg"))}

    with_runner(tmp_path, scenario)
