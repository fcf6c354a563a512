"""The job table on both databases: claims, fencing, leases, order, lists."""

import asyncio
import time
from dataclasses import replace

import pytest
from job_tables import COST, DURATIONS, NEW, SETTINGS, change, claimed, completed, read, run, started, submitted, video

from serve.jobs import statements
from serve.jobs.job import ClaimProgress, JobSettings, Outcome, StoredArtifact
from serve.jobs.table import JobTable
from serve.schema import ListQuery

pytest_plugins = ["job_table_fixtures"]


def test_a_job_goes_from_queued_over_in_progress_to_completed(settings: JobSettings) -> None:
    async def scenario(table: JobTable) -> None:
        job = await submitted(table)
        assert (job.status, job.attempts, job.step, job.params) == ("queued", 0, 0, {"prompt": "x"})
        assert abs(job.created_at - time.time()) < 60
        assert job.deadline_at == pytest.approx(job.created_at + 100, abs=0.1)
        claim, owner = await claimed(table)
        assert (await read(table, job)).status == "queued", "until its denoise starts"
        start = await table.start(owner)
        assert start is not None
        assert start.attempts == 1
        assert 0 <= start.waited_s < 60
        await table.renew({owner: ClaimProgress("denoiser", 3)})
        job = await read(table, job)
        assert (job.status, job.stage, job.step) == ("in_progress", "denoiser", 3)
        made = [*video(owner), StoredArtifact("thumbnail", "image/jpeg", 3, f"folder/{owner}.thumbnail.jpg")]
        assert await table.complete(claim, made, DURATIONS)
        assert await table.complete(claim, made, DURATIONS), "a write whose answer was lost is repeated"
        assert not await table.complete(claim, video("other"), DURATIONS)
        assert not await table.complete(claim, video(owner), DURATIONS), "not all of what was stored"
        job = await read(table, job)
        assert (job.status, job.step, job.artifacts) == ("completed", 4, made)
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
        lost, old = await started(table)
        assert await table.claim() is None, "the lease is not over"
        await change(table, job, lease_until=0.0)
        taken, new = await claimed(table)
        assert (taken.id, taken.status, taken.attempts) == (job.id, "queued", 1)
        assert new != old
        assert await table.still_owned([old, new]) == {new}
        assert await table.start(old) is None
        assert not await table.complete(lost, video(old), DURATIONS)
        await table.fail(old, Outcome("x", "x"))
        await table.release(old)
        await table.fail_expired(old)
        await table.renew({old: ClaimProgress("denoiser", 4)})
        assert await read(table, job) == taken
        start = await table.start(new)
        assert start is not None
        assert start.attempts == 2
        assert await table.complete(taken, video(new), DURATIONS)
        assert (await read(table, job)).files == [f"folder/{new}.mp4"]

    run(settings, scenario)


def test_a_renewed_lease_holds(settings: JobSettings) -> None:
    async def scenario(table: JobTable) -> None:
        job = await submitted(table)
        _, owner = await claimed(table)
        await change(table, job, lease_until=0.0)
        assert await table.may_claim()
        await table.renew({owner: ClaimProgress()})
        assert await table.claim() is None
        assert (await read(table, job)).lease_until == pytest.approx(time.time() + SETTINGS.lease_s, abs=10)

    run(settings, scenario)


def test_a_job_that_was_attempted_too_often_fails_with_a_reason(settings: JobSettings) -> None:
    async def scenario(table: JobTable) -> None:
        job = await submitted(table)
        for attempt in (1, 2, 3):
            _, owner = await claimed(table)
            start = await table.start(owner)
            assert start is not None
            assert start.attempts == attempt
            await table.release(owner)
        assert await table.claim() is None
        assert len(await table.fail_expired()) == 1
        job = await read(table, job)
        assert (job.status, job.error_code) == ("failed", "attempts_exhausted")

    run(settings, scenario)


def test_a_job_past_its_deadline_fails_whether_it_waits_or_runs(settings: JobSettings) -> None:
    async def scenario(table: JobTable) -> None:
        running, waiting = await submitted(table), await submitted(table)
        _, owner = await started(table)
        for job in (running, waiting):
            await change(table, job, deadline_at=0.0)
        assert await table.still_owned([owner]) == set()
        await table.fail_expired(owner)
        await table.fail_expired()
        for job in (running, waiting):
            assert (await read(table, job)).error_code == "deadline_exceeded"

    run(settings, scenario)


def test_a_cancelled_job_never_starts_and_a_running_one_is_taken_away(settings: JobSettings) -> None:
    async def scenario(table: JobTable) -> None:
        running, waiting = await submitted(table), await submitted(table)
        claim, owner = await started(table)
        for job in (running, waiting):
            await table.cancel(job.id)
        assert (await read(table, waiting)).error_code == "cancelled"
        assert await table.claim() is None
        assert (await read(table, running)).status == "in_progress", "until its runner ends it"
        assert await table.still_owned([owner]) == set()
        assert not await table.complete(claim, video(owner), DURATIONS)
        await table.fail_expired(owner)
        assert (await read(table, running)).error_code == "cancelled"

    run(settings, scenario)


def test_a_cancelled_job_whose_runner_died_fails_as_cancelled(settings: JobSettings) -> None:
    async def scenario(table: JobTable) -> None:
        job = await submitted(table)
        await started(table)
        await table.cancel(job.id)
        await change(table, job, lease_until=0.0)
        assert await table.claim() is None
        assert len(await table.fail_expired()) == 1
        assert (await read(table, job)).error_code == "cancelled"

    run(settings, scenario)


def test_a_deleted_job_is_gone_for_its_runner_too(settings: JobSettings) -> None:
    async def scenario(table: JobTable) -> None:
        job = await submitted(table)
        _, owner = await claimed(table)
        assert (await table.delete(job.id)) is not None
        assert await table.get(job.id) is None
        assert await table.delete(job.id) is None
        assert await table.start(owner) is None
        assert await table.still_owned([owner]) == set()
        after = await submitted(table)
        assert after.seq > job.seq, "order of arrival outlives deletion"

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
        claim, owner = await started(table)
        assert await table.tokens_in_use() == {owner}, "the files of a claim that may complete are in use"
        await table.complete(claim, video("0a1b"), DURATIONS)
        waiting = await submitted(table)
        assert await table.tokens_in_use() == {"0a1b"}
        assert await table.delete_past_retention() == []
        await change(table, claim, expires_at=0.0)
        assert [deleted.files for deleted in await table.delete_past_retention()] == [["folder/0a1b.mp4"]]
        assert [job.id for job in await table.page(None, 9, newest_first=True)] == [waiting.id]

    run(settings, scenario)


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
        assert await theirs.fail_expired() == [], "one attempt is enough for their rules, but it is not theirs"
        claim, owner = await claimed(theirs)
        assert claim.id == foreign.id
        assert not await theirs.may_claim()
        assert await table.may_claim()
        await theirs.close()

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
        monkeypatch.setattr(statements, "MOST_SAMPLES", 2)
        assert len(await table.finished()) == 2

    run(settings, scenario)
