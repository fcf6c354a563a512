"""Place in the queue, seconds to go and progress, against hand-made schedules and a machine of known speed."""

import math
import random
from collections.abc import Iterable
from typing import Any

import pytest

from cosmos3_models import GenerationParams
from cosmos3_models.checkpoint.folder import DEMO, Checkpoint
from cosmos3_models.sampling.plan import passes_by_step
from serve.estimates.cost import Cost, cost_of, percent
from serve.estimates.direct_requests import DirectRequests
from serve.estimates.observed_jobs import ActiveJob, FinishedJob
from serve.estimates.schedule import UNKNOWN_RETRY_S, Rates, Schedule

COST = Cost(model="m on cpu", mode="exact", passes=2, text=0, step=100, decode=200)
DONE = FinishedJob(COST, 10, {"tokenizer": 9, "denoiser": 10}, wall_s=12, after_last_s=12)
QUEUED = ActiveJob(1, "queued", None, 0, 10, COST, 0)
SIZES = [(64, 64, 5), (64, 64, 33), (128, 128, 17), (192, 192, 33), (256, 256, 33), (384, 256, 49)]


def denoising(seq: int, step: int, running_s: float | None = None) -> ActiveJob:
    return ActiveJob(seq, "in_progress", "denoiser", step, 10, COST, step * 1.0 if running_s is None else running_s)


def waiting(seq: int, cost: Cost | None = COST) -> ActiveJob:
    return QUEUED._replace(seq=seq, cost=cost)


def schedule(
    active: list[ActiveJob], finished: Iterable[FinishedJob] = (DONE,), direct: Iterable[ActiveJob] = ()
) -> Schedule:
    return Schedule(Rates(finished), active, list(direct))


def test_a_running_job_needs_the_rest_of_its_steps_and_its_decode() -> None:
    assert schedule([denoising(1, 4)]).estimate(1) == (0, pytest.approx(6 + 2))


def test_within_a_step_the_clock_continues() -> None:
    assert schedule([denoising(1, 4, running_s=4.5)]).estimate(1) == (0, pytest.approx(5.5 + 2))
    assert schedule([denoising(1, 0, running_s=0.0)]).estimate(1) == (0, pytest.approx(10 + 2))


def test_a_job_that_is_slower_or_faster_than_expected_continues_at_its_own_pace() -> None:
    assert schedule([denoising(1, 4, running_s=10)]).estimate(1) == (0, pytest.approx(5 * 2 + 2))
    assert schedule([denoising(1, 4, running_s=2)]).estimate(1) == (0, pytest.approx(6 / 2 + 2))


def test_the_pace_of_the_first_moments_is_not_believed() -> None:
    late = denoising(1, 1, running_s=0.01)  # both records arrived at once
    assert schedule([late]).estimate(1) == (0, pytest.approx(10 + 2, abs=0.1))
    assert schedule([late], []).estimate(1).eta_s is not None, "nothing better is known"
    larger = late._replace(steps=100)
    assert schedule([larger, waiting(2)]).estimate(2) == (1, pytest.approx(100 + 2 + 10, abs=3))


def test_a_picture_is_encoded_before_the_denoise_unless_the_denoiser_is_busy_for_longer() -> None:
    cost = COST._replace(encode=300)
    assert schedule([waiting(1, cost)]).estimate(1) == (1, pytest.approx(3 + 10 + 2)), "at the denoiser's speed"
    measured = DONE._replace(cost=cost, stage_durations={"tokenizer": 1, "video_encoder": 6, "denoiser": 10})
    assert schedule([waiting(1, cost)], [measured]).estimate(1) == (1, pytest.approx(6 + 10 + 2))
    assert schedule([denoising(1, 2), waiting(2, cost)], [measured]).estimate(2) == (1, pytest.approx(8 + 10 + 2))
    assert schedule([denoising(1, 9), waiting(2, cost)], [measured]).estimate(2) == (1, pytest.approx(6 + 10 + 2))
    assert schedule([waiting(1)], [measured]).estimate(1) == (1, pytest.approx(10 + 2)), "of text alone"


UPSAMPLED = DONE._replace(stage_durations=DONE.stage_durations | {"prompt_upsampler": 4.0})


def upsampling(seq: int) -> ActiveJob:
    return waiting(seq)._replace(upsampling_pending=True)


def test_a_prompt_is_rewritten_before_the_denoise_unless_the_denoiser_is_busy_for_longer() -> None:
    assert schedule([upsampling(1)]).estimate(1) == (1, pytest.approx(10 + 2)), "nothing is known"
    assert schedule([upsampling(1)], [UPSAMPLED]).estimate(1) == (1, pytest.approx(4 + 10 + 2))
    assert schedule([waiting(1)], [UPSAMPLED]).estimate(1) == (1, pytest.approx(10 + 2)), "already, or not at all"
    assert schedule([denoising(1, 2), upsampling(2)], [UPSAMPLED]).estimate(2) == (1, pytest.approx(8 + 10 + 2))
    slow = UPSAMPLED._replace(stage_durations=UPSAMPLED.stage_durations | {"prompt_upsampler": 100.0})
    times = schedule([upsampling(1)], [UPSAMPLED, UPSAMPLED, slow])
    assert times.estimate(1) == (1, pytest.approx(4 + 10 + 2)), "the median"


def test_a_job_whose_prompt_is_rewritten_lets_others_pass() -> None:
    queue = schedule([upsampling(1), waiting(2)], [UPSAMPLED])
    assert queue.estimate(2) == (2, pytest.approx(10 + 2))
    assert queue.estimate(1) == (1, pytest.approx(10 + 10 + 2))
    assert queue.retry_after_s == 1
    busy = schedule([denoising(0, 5), upsampling(1), waiting(2)], [UPSAMPLED])
    assert busy.estimate(1) == (1, pytest.approx(5 + 10 + 2)), "it is ready before the denoiser is"


def test_an_encoded_picture_is_a_part_of_the_progress() -> None:
    cost = COST._replace(encode=700)  # of 700 + 10 * 100 + 200
    assert [percent(cost, step, 10) for step in (0, 1, 10)] == [0, 42, 89]


def test_a_decoding_job_needs_the_rest_of_its_decode() -> None:
    job = ActiveJob(1, "in_progress", "decoders", 10, 10, COST, running_s=11)
    assert schedule([job]).estimate(1) == (0, pytest.approx(1))
    assert schedule([job._replace(running_s=50)]).estimate(1) == (0, 0)


def test_videos_that_are_denoised_wait_for_the_decoder() -> None:
    decoding = ActiveJob(1, "in_progress", "decoders", 10, 10, COST._replace(decode=3000), running_s=15)
    quick = waiting(2, COST._replace(step=10))
    queue = schedule([decoding, quick])
    assert queue.estimate(1) == (0, pytest.approx(10 + 30 - 15))
    assert queue.estimate(2) == (1, pytest.approx(25 + 2)), "its denoise ends before"


def test_what_a_video_waited_for_the_decoder_is_not_its_own_cost() -> None:
    waited = DONE._replace(wall_s=100, after_last_s=2)
    assert schedule([waiting(1)], [waited]).estimate(1) == (1, pytest.approx(10 + 2))


def test_queued_jobs_wait_for_the_running_one_and_those_before_them() -> None:
    queue = schedule([denoising(1, 4), waiting(2), waiting(3)])
    assert queue.estimate(2) == (1, pytest.approx(6 + 10 + 2))
    assert queue.estimate(3) == (2, pytest.approx(6 + 10 + 10 + 2))


def test_two_denoisers_share_the_queue() -> None:
    queue = schedule([denoising(1, 5), denoising(2, 5), waiting(3), waiting(4), waiting(5)])
    assert queue.estimate(5) == (3, pytest.approx(5 + 10 + 10 + 2))


def test_a_larger_job_takes_longer() -> None:
    large = waiting(2, COST._replace(step=500, decode=1000))
    assert schedule([waiting(1), large]).estimate(2) == (2, pytest.approx(10 + 50 + 10))


def test_the_first_job_ever_is_judged_by_its_own_steps_and_nothing_is_claimed_before_them() -> None:
    assert schedule([waiting(1)], []).estimate(1) == (1, None)
    assert schedule([denoising(1, 0)], []).estimate(1) == (0, None)
    decode_s = 200 / 100  # an operation of the decode takes as long as one of the steps
    assert schedule([denoising(1, 4, running_s=4.5)], []).estimate(1) == (0, pytest.approx(5.5 + decode_s))
    long = denoising(1, 1, running_s=1.5)._replace(steps=200)
    assert schedule([long], []).estimate(1) == (0, pytest.approx(198.5 + decode_s))
    both = schedule([denoising(1, 4, running_s=4.5), waiting(2)], [])
    assert both.estimate(2) == (1, pytest.approx(5.5 + 10 + decode_s)), "what waits is judged by what runs"


def test_far_larger_jobs_than_any_so_far_are_not_guessed_at_until_their_first_step() -> None:
    tiny = [FinishedJob(COST._replace(step=0.1, decode=0.2), 1, {"denoiser": 0.1}, 0.2, 0.2) for _ in range(100)]
    assert schedule([waiting(1)], tiny).estimate(1) == (1, None)
    assert schedule([waiting(1), waiting(2)], tiny).retry_after_s == 1
    assert schedule([denoising(1, 0), waiting(2)], tiny).retry_after_s == UNKNOWN_RETRY_S
    assert schedule([denoising(1, 4, running_s=4.5)], tiny).estimate(1) == (0, pytest.approx(5.5 + 2, rel=0.25))


def test_a_job_of_an_earlier_release_has_no_estimate_and_neither_has_what_waits_for_it() -> None:
    queue = schedule([denoising(1, 4), waiting(2, None), waiting(3)])
    assert queue.estimate(2) == (1, None)
    assert queue.estimate(3) == (2, None)
    assert percent(None, 5, 10) == 50
    assert percent(None, 10, 10) == 99


def test_retry_after_is_when_the_next_place_is_free() -> None:
    assert schedule([denoising(1, 0), waiting(2)], []).retry_after_s == UNKNOWN_RETRY_S
    assert schedule([denoising(1, 4), waiting(2)]).retry_after_s == 6
    assert schedule([denoising(1, 4), denoising(2, 8), waiting(3)]).retry_after_s == 2
    assert schedule([denoising(1, 10), waiting(2)]).retry_after_s == 1


def test_requests_whose_clients_wait_come_before_the_jobs_of_the_table() -> None:
    running, behind = denoising(0, 4), waiting(0)
    queue = schedule([waiting(1)], direct=[running, behind])
    assert queue.estimate(1) == (1, pytest.approx(6 + 10 + 10 + 2))
    assert queue.retry_after_s == 16


def test_a_direct_request_counts_from_its_arrival_to_its_end() -> None:
    requests = DirectRequests()
    with requests.counted(COST, 10) as note:
        assert [(job.status, job.step) for job in requests.active()] == [("queued", 0)]
        note({"type": "progress", "stage": "prompt_upsampler", "step": 0, "steps": 1, "elapsed_s": 0.0})
        assert [(job.status, job.running_s) for job in requests.active()] == [("queued", 0)]
        note({"type": "progress", "stage": "denoiser", "step": 0, "steps": 10, "elapsed_s": 0.1})
        note({"type": "progress", "stage": "denoiser", "step": 3, "steps": 10, "elapsed_s": 0.2})
        (job,) = requests.active()
        assert (job.status, job.stage, job.step) == ("in_progress", "denoiser", 3)
        assert 0 < job.running_s < 60
    assert requests.active() == []
    with pytest.raises(ValueError, match="broken"), requests.counted(COST, 10):
        raise ValueError("broken")
    assert requests.active() == []


@pytest.mark.parametrize("steps", [1, 16, 200])
def test_progress_never_falls_and_is_100_for_finished_videos_only(steps: int) -> None:
    cost = cost_of(Checkpoint.open(DEMO), "cpu", GenerationParams(prompt="x", height=192, width=192), (50, 14))
    progress = [percent(cost, step, steps) for step in range(steps + 1)]
    assert progress == sorted(progress)
    assert progress[0] == 0
    assert progress[-1] <= 99


def test_progress_leaves_the_decode_its_share() -> None:
    assert percent(COST, 10, 10) == 83, "1000 of 1200"
    assert percent(COST._replace(decode=1000), 10, 10) == 50


class Machine:
    """Takes a known time for every part of a job, give or take some noise."""

    def __init__(self, noise: float) -> None:
        self.checkpoint = Checkpoint.open(DEMO)
        self._noise = noise
        self._random = random.Random(0)

    def cost(self, size: tuple[int, int, int], **fields: Any) -> Cost:
        height, width, frames = size
        asked = GenerationParams(prompt="x", height=height, width=width, num_frames=frames, **fields)
        return cost_of(self.checkpoint, "cpu", asked, (50,) if asked.guidance_scale == 1 else (50, 14))

    def seconds(self, cost: Cost, steps: int) -> tuple[float, float]:
        """Of denoise and decode, without noise."""
        fast = 2 if "fp8" in cost.mode else 1
        passes = sum(passes_by_step(steps, cost.passes, cost.velocity_reuse, cost.guidance_reuse))
        flops = cost.text + cost.step * passes / cost.passes
        denoise = 0.01 + 0.0045 * passes + flops / 120e9 / fast
        return denoise, 0.05 + cost.decode / 100e9

    def finish(self, cost: Cost, steps: int, slowed: float = 1) -> FinishedJob:
        denoise, decode = (
            slowed * seconds * (1 + self._noise * self._random.uniform(-1, 1)) for seconds in self.seconds(cost, steps)
        )
        return FinishedJob(cost, steps, {"denoiser": denoise}, denoise + decode, math.inf)

    def ratio(self, cost: Cost, steps: int, finished: Iterable[FinishedJob]) -> float:
        """Estimate over truth of a job that runs alone."""
        eta_s = schedule([QUEUED._replace(cost=cost, steps=steps)], finished).estimate(1).eta_s
        return math.nan if eta_s is None else eta_s / sum(self.seconds(cost, steps))


def test_estimates_hold_from_the_smallest_size_to_the_largest() -> None:
    machine = Machine(noise=0.1)
    mixture = [
        (machine.cost(size, guidance_scale=scale), steps) for size in SIZES for scale in (1, 3) for steps in (1, 4, 16)
    ]
    finished = [machine.finish(cost, steps) for cost, steps in mixture]
    for cost, steps in mixture:
        assert machine.ratio(cost, steps, finished) == pytest.approx(1, abs=0.15)


def test_a_size_that_was_never_made_is_estimated_between_those_that_were() -> None:
    machine = Machine(noise=0.05)
    known = [(machine.cost(size), steps) for size in (SIZES[0], SIZES[2], SIZES[5]) for steps in (1, 4, 16)]
    finished = [machine.finish(*job) for job in known]
    for size in SIZES:
        assert machine.ratio(machine.cost(size), 8, finished) == pytest.approx(1, abs=0.15)


def test_one_finished_job_is_enough_for_others_of_its_size() -> None:
    machine = Machine(noise=0)
    for size in SIZES:
        cost = machine.cost(size)
        assert machine.ratio(cost, 4, [machine.finish(cost, 4)]) == pytest.approx(1)


@pytest.mark.parametrize(
    ("fields", "passes"), [({"velocity_reuse": 3}, 34), ({"guidance_reuse": 2}, 54), ({"profile": "fast"}, 30)]
)
def test_the_time_of_reused_steps_is_known_from_exact_jobs(fields: dict[str, Any], passes: int) -> None:
    machine = Machine(noise=0)
    exact, fast, fp8 = (machine.cost(SIZES[2], **given) for given in ({}, fields, {"fp8_linears": True}))
    assert fast.full_steps(35, 35) * fast.passes == passes
    finished = [machine.finish(cost, 35) for cost in (exact, fp8, fp8)]
    assert machine.ratio(fast, 35, finished) == pytest.approx(1, abs=0.03), "a pass takes as long as an exact one"


def test_a_running_job_that_reuses_steps_is_on_time_after_each_of_them() -> None:
    cost = COST._replace(velocity_reuse=5)  # of 35 steps 15 are computed, a second each
    finished = [DONE._replace(steps=40, stage_durations={"denoiser": 40}, wall_s=42)]
    for step, seconds in ((6, 6), (7, 6), (8, 7), (28, 12), (29, 13), (33, 13), (35, 15)):
        job = ActiveJob(1, "in_progress", "denoiser", step, 35, cost, running_s=seconds)
        assert schedule([job], finished).estimate(1).eta_s == pytest.approx(15 - seconds + 2), step


def test_jobs_that_others_slowed_do_not_spoil_the_estimates() -> None:
    machine = Machine(noise=0.05)
    mixture = [(machine.cost(size), steps) for size in SIZES for steps in (4, 16)]
    finished = [machine.finish(*job, slowed=slowed) for job in mixture for slowed in (1, 1, 1, 4)]
    for cost, steps in mixture:
        assert machine.ratio(cost, steps, finished) == pytest.approx(1, abs=0.2)


def test_fast_modes_do_not_spoil_the_estimates_of_exact_jobs() -> None:
    machine = Machine(noise=0.05)
    exact = [machine.cost(size) for size in SIZES]
    fast = [machine.cost(size, fp8_linears=True) for size in SIZES]
    few = [machine.finish(cost, 16) for cost in exact]
    many = [machine.finish(cost, 16) for cost in fast * 5]
    for cost in (*exact, *fast):
        assert machine.ratio(cost, 16, few + many) == pytest.approx(1, abs=0.15)
    for cost in fast:
        assert 1 < machine.ratio(cost, 16, few) < 2.2, "as slow as exact ones, until one is measured"


def test_other_models_and_devices_tell_nothing() -> None:
    machine = Machine(noise=0)
    cost = machine.cost(SIZES[2])
    other = machine.finish(cost._replace(model="cosmos3-demo on cuda"), 4)
    assert math.isnan(machine.ratio(cost, 4, [other]))
