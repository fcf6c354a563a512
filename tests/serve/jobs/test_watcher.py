"""Streams of events in this process: one reader for all, every step for each."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from cosmos3_models.params import GenerationDefaults
from serve.app import AppArgs
from serve.errors import DatabaseUnavailable
from serve.estimates.cost import Cost
from serve.jobs import videos as videos_module
from serve.jobs.job import Caller, ClaimProgress, StoredArtifact
from serve.jobs.media_store import MediaStore
from serve.jobs.migrations import prepare
from serve.jobs.videos import Videos
from serve.jobs.wanted import Wanted
from serve.schema import VideoRequest

COST = Cost(model="m on cpu", mode="exact", passes=2, text=10, step=100, decode=50)
DURATIONS = {"denoiser": 1.0}
STREAMS = 192
STEPS = 4


def with_videos(folder: Path, scenario: Callable[[Videos], Awaitable[None]]) -> None:
    args = AppArgs(data_dir=str(folder))

    async def scene() -> None:
        prepare(args.job_settings().database_url)
        videos = Videos(args.job_settings(), MediaStore(args.media()), "m", "folder")
        await scenario(videos)
        await videos.table.close()

    asyncio.run(scene())


async def submitted(videos: Videos) -> str:
    request = VideoRequest(prompt="x", num_inference_steps=STEPS)
    params = request.params(GenerationDefaults())
    return (await videos.submit(Wanted(request, params, COST), Caller())).id


async def followed(videos: Videos, video_id: str, last_event: int | None = None) -> list[tuple[int, dict[str, Any]]]:
    """All events to the end."""
    async with aclosing(videos.events(video_id, last_event)) as events:
        return [numbered async for numbered in events if numbered]


async def finish(videos: Videos, pause_s: float = 0.0) -> None:
    """Complete the oldest job, step by step."""
    job = await videos.table.claim()
    assert job is not None
    assert job.owner is not None
    await videos.table.start(job.owner)
    for step in range(STEPS + 1):
        await videos.table.renew({job.owner: ClaimProgress("denoiser", step)})
        await asyncio.sleep(pause_s)
    assert await videos.table.complete(job, [StoredArtifact("video", "video/mp4", 1, "x.mp4")], DURATIONS)


def test_open_streams_share_one_look_per_period(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(videos: Videos) -> None:
        ids = [await submitted(videos) for _ in range(STREAMS)]
        streams = [asyncio.create_task(followed(videos, video_id)) for video_id in ids]
        await asyncio.sleep(2 * videos_module.WATCH_PERIOD_S)
        reads = []
        read = videos.table._database.read

        async def counted(transaction: Any) -> Any:
            reads.append(transaction)
            return await read(transaction)

        monkeypatch.setattr(videos.table._database, "read", counted)
        await asyncio.sleep(4 * videos_module.WATCH_PERIOD_S)
        assert 1 <= len(reads) <= 10, "of active jobs, and of finished ones for the estimates"
        for video_id in ids:
            await videos.delete(video_id)
        ends = await asyncio.gather(*streams)
        assert [events[-1][1] for events in ends] == [{"type": "deleted"}] * STREAMS

    with_videos(tmp_path, scenario)


def test_every_stream_hears_every_step_once_and_the_end(tmp_path: Path) -> None:
    async def scenario(videos: Videos) -> None:
        video_id = await submitted(videos)
        streams = [asyncio.create_task(followed(videos, video_id)) for _ in range(3)]
        await finish(videos, pause_s=0.1)
        late = await followed(videos, video_id)
        for events in [*await asyncio.gather(*streams), late]:
            assert [event["step"] for _, event in events if event["type"] == "progress"] == list(range(STEPS + 1))
            assert (events[-1][1]["type"], events[-1][1]["video"]["status"]) == ("completed", "completed")
        assert await followed(videos, video_id, last_event=late[-1][0]) == []
        assert await followed(videos, video_id, last_event=late[2][0]) == late[3:]
        assert videos._watcher._followers == set()

    with_videos(tmp_path, scenario)


def test_a_stream_outlasts_an_outage_of_the_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(videos: Videos) -> None:
        video_id = await submitted(videos)
        stream = asyncio.create_task(followed(videos, video_id))
        await asyncio.sleep(0.1)

        async def unavailable() -> Any:
            raise DatabaseUnavailable("the job table cannot be reached; try again")

        with monkeypatch.context() as outage:
            outage.setattr(videos.table, "active", unavailable)
            await asyncio.sleep(3 * videos_module.WATCH_PERIOD_S)
        await finish(videos)
        assert (await stream)[-1][1]["type"] == "completed"

    with_videos(tmp_path, scenario)
