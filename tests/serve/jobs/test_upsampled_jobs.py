"""Jobs whose prompts are rewritten: before they wait for the denoisers, once, many at a time, and in the record."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fakes import FakeGraph
from job_runners import DENOISING, FINISHED, counted, with_runner
from job_tables import COST, NEW, claimed, read, run, started, submitted

from cosmos3_models import GenerationParams
from serve.errors import NotReady, PromptUpsamplingFailed, StageFailed
from serve.estimates.schedule import Estimate, Rates, Schedule
from serve.graph.revision import Revision
from serve.jobs.job import Caller, Job, JobSettings
from serve.jobs.media_store import MediaStore
from serve.jobs.records import events_of, record_of
from serve.jobs.runner import JobRunner
from serve.jobs.table import JobTable
from serve.jobs.wanted import Wanted
from serve.jobs.watcher import JobState
from serve.schema import VideoRequest

pytest_plugins = ["job_table_fixtures"]

PARAMS = GenerationParams(prompt="a ball", num_frames=5, height=16, width=16, prompt_upsampling=True)
ASKS = NEW._replace(params=PARAMS.model_dump(), steps=1, upsampling_pending=True)
CAPTION = '{"subjects": []}'
GOOD = Revision(CAPTION, None, 2.5)
FAILED = Revision(None, "the prompt upsampler failed: its server answered 500", 0.5)


class FakeReviser:
    """Gives the same revision, or error, to every request, or awaits a coroutine function."""

    def __init__(self, result: Any) -> None:
        self.result = result
        self.asked: list[GenerationParams] = []

    async def revise(self, params: GenerationParams, _: Any) -> Revision:
        self.asked.append(params)
        if isinstance(self.result, Exception):
            raise self.result
        revision: Revision = await self.result() if callable(self.result) else self.result
        return revision


class RecordedGraph(FakeGraph):
    """Keeps what it was asked to make."""

    def __init__(self, *script: Any) -> None:
        super().__init__(*script)
        self.made: list[GenerationParams] = []

    def run(self, params: GenerationParams, *given: Any, **named: Any) -> Any:
        self.made.append(params)
        return super().run(params, *given, **named)


def fakes(runner: JobRunner, result: Any, *script: Any) -> tuple[FakeReviser, RecordedGraph]:
    reviser: Any = FakeReviser(result)
    graph: Any = RecordedGraph(*(script or (DENOISING, FINISHED)))
    runner._reviser, runner._graph = reviser, graph
    return reviser, graph


def scene(folder: Path, scenario: Callable[[JobRunner, JobTable], Awaitable[None]]) -> None:
    async def with_table(runner: JobRunner, table: JobTable, _: MediaStore) -> None:
        await scenario(runner, table)

    with_runner(folder, with_table)


def record(job: Job) -> dict[str, Any]:
    return record_of(job, Schedule(Rates([]), [])).model_dump()


def test_a_job_is_made_from_its_caption_and_its_record_has_both(tmp_path: Path) -> None:
    async def scenario(runner: JobRunner, table: JobTable) -> None:
        reviser, graph = fakes(runner, GOOD)
        job = await submitted(table, ASKS)
        await runner.work()
        waiting = await read(table, job)
        assert (waiting.status, waiting.owner, waiting.attempts, waiting.stage) == ("queued", None, 0, None)
        assert record(waiting)["revised_prompt"] == CAPTION
        assert record(waiting)["stage_durations"] is None
        await runner.work()
        done = record(await read(table, job))
        assert (done["status"], done["prompt"], done["revised_prompt"]) == ("completed", "a ball", CAPTION)
        assert (done["prompt_upsampling"], done["prompt_upsampling_error"]) == (True, None)
        assert list(done["stage_durations"]) == ["prompt_upsampler", "denoiser", "storing", "queue"]
        assert done["stage_durations"]["prompt_upsampler"] == 2.5
        assert [params.prompt for params in reviser.asked] == ["a ball"]
        assert [params.prompt for params in graph.made] == [CAPTION]

    scene(tmp_path, scenario)


def test_a_failure_is_in_the_record_of_a_job_that_goes_on(tmp_path: Path) -> None:
    async def scenario(runner: JobRunner, table: JobTable) -> None:
        _, graph = fakes(runner, FAILED)
        job = await submitted(table, ASKS)
        await runner.work()
        await runner.work()
        done = record(await read(table, job))
        assert (done["status"], done["revised_prompt"]) == ("completed", None)
        assert done["prompt_upsampling_error"] == FAILED.error
        assert [params.prompt for params in graph.made] == ["a ball"]

    scene(tmp_path, scenario)


def test_a_job_that_requires_a_caption_fails_without_one(tmp_path: Path) -> None:
    async def scenario(runner: JobRunner, table: JobTable) -> None:
        _, graph = fakes(runner, PromptUpsamplingFailed("its server answered 500", "prompt_upsampling"))
        ends = counted(runner)
        job = await submitted(table, ASKS)
        await runner.work()
        failed = record(await read(table, job))
        assert (failed["status"], failed["error"]["code"]) == ("failed", "prompt_upsampling_failed")
        assert ends.states == ["prompt_upsampling_failed"]
        assert graph.made == []

    scene(tmp_path, scenario)


def test_a_job_that_fails_after_its_caption_has_no_times(tmp_path: Path) -> None:
    async def scenario(runner: JobRunner, table: JobTable) -> None:
        fakes(runner, GOOD, DENOISING, StageFailed("the denoiser failed"))
        job = await submitted(table, ASKS)
        await runner.work()
        await runner.work()
        failed = record(await read(table, job))
        assert (failed["status"], failed["revised_prompt"], failed["stage_durations"]) == ("failed", CAPTION, None)

    scene(tmp_path, scenario)


def test_a_retried_job_keeps_its_caption(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve.jobs.runner.RELEASE_DELAY_S", 0.0)

    async def scenario(runner: JobRunner, table: JobTable) -> None:
        reviser, graph = fakes(runner, GOOD, DENOISING, NotReady("the denoiser is not running"))
        job = await submitted(table, ASKS)
        await runner.work()
        await runner.work()
        assert (await read(table, job)).attempts == 1
        _, again = fakes(runner, GOOD)
        runner._reviser = reviser  # type: ignore[assignment]
        await runner.work()
        assert (await read(table, job)).status == "completed"
        assert [params.prompt for params in (*graph.made, *again.made)] == [CAPTION] * 2
        assert len(reviser.asked) == 1

    scene(tmp_path, scenario)


def test_a_job_that_is_cancelled_meanwhile_is_not_made(tmp_path: Path) -> None:
    async def scenario(runner: JobRunner, table: JobTable) -> None:
        job = await submitted(table, ASKS)

        async def cancelled() -> Revision:
            await table.cancel(job.id)
            return GOOD

        fakes(runner, cancelled)
        await runner.work()
        failed = await read(table, job)
        assert (failed.status, failed.error_code, failed.revised_prompt) == ("failed", "cancelled", None)

    scene(tmp_path, scenario)


def test_a_stopped_runner_frees_the_job_for_another_one_to_ask(tmp_path: Path) -> None:
    async def scenario(runner: JobRunner, table: JobTable) -> None:
        asked = asyncio.Event()

        async def never() -> Revision:
            asked.set()
            await asyncio.Event().wait()
            return GOOD

        fakes(runner, never)
        job = await submitted(table, ASKS)
        work = asyncio.create_task(runner.work())
        await asked.wait()
        work.cancel()
        await asyncio.wait([work])
        freed = await read(table, job)
        assert (freed.status, freed.owner, freed.upsampling_pending) == ("queued", None, True)

    scene(tmp_path, scenario)


def test_prompts_are_rewritten_while_others_wait_and_no_job_waits_for_them(settings: JobSettings) -> None:
    async def scenario(table: JobTable) -> None:
        jobs = [await submitted(table, new) for new in (ASKS, ASKS, ASKS, NEW, NEW)]
        taken = [await claimed(table) for _ in range(3)]
        assert [job.seq for job, _ in taken] == [jobs[0].seq, jobs[1].seq, jobs[3].seq], "two at a time, and one waits"
        assert [job.stage for job, _ in taken] == ["prompt_upsampler", "prompt_upsampler", None]
        assert await table.claim() is None
        assert not await table.may_claim()
        assert await table.revise(taken[1][1], GOOD)
        assert (await claimed(table))[0].seq == jobs[2].seq
        assert await table.claim() is None, "one already waits for the denoisers"
        assert await table.start(taken[2][1]) is not None
        assert [(await claimed(table))[0].seq for _ in range(1)] == [jobs[1].seq], "before the job that came later"

    run(replace(settings, max_upsampling=2), scenario)


def test_only_the_owner_writes_what_became_of_a_prompt(settings: JobSettings) -> None:
    async def scenario(table: JobTable) -> None:
        job = await submitted(table, ASKS)
        _, owner = await claimed(table)
        assert not await table.revise("another", GOOD)
        long = Revision(None, "x" * 5000, 1.0)
        assert await table.revise(owner, long)
        assert not await table.revise(owner, GOOD)
        kept = await read(table, job)
        assert (kept.revised_prompt, len(kept.prompt_upsampling_error or "")) == (None, 1024)
        claim, owner = await started(table)
        assert (claim.seq, claim.upsampling_pending, claim.stage) == (job.seq, False, None)

    run(settings, scenario)


def test_the_events_of_a_queued_job_name_its_stage(settings: JobSettings) -> None:
    async def scenario(table: JobTable) -> None:
        job, estimate = await submitted(table, ASKS), Estimate(1, None)
        await claimed(table)
        for state in (JobState((await table.active())[0], estimate), JobState(await read(table, job), estimate)):
            assert list(events_of(state, None)) == [
                (998, {"type": "queued", "queue_position": 1, "stage": "prompt_upsampler", "eta_s": None})
            ]

    run(settings, scenario)


def test_the_row_of_a_request_says_whether_its_prompt_is_to_be_rewritten() -> None:
    for prompt, pending in (("a ball", True), (CAPTION, False)):
        wanted = Wanted(VideoRequest(prompt=prompt), PARAMS.model_copy(update={"prompt": prompt}), COST)
        assert wanted.job("m", Caller()).upsampling_pending is pending
