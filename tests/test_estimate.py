"""Place in the queue and seconds to go, against hand-made schedules."""

import pytest

from serve.estimate import UNKNOWN_RETRY_S, estimate, retry_after_s
from serve.jobs import ActiveJob, FinishedJob, Load

DONE = FinishedJob(work=1000, pixel_frames=100, stage_durations={"tokenizer": 9, "denoiser": 10, "decoders": 2})
QUEUED = ActiveJob(1, "queued", None, 0, 10, 1000, 100, 0)


def denoising(seq: int, step: int) -> ActiveJob:
    return ActiveJob(seq, "in_progress", "denoiser", step, 10, 1000, 100, step * 1.0)


def waiting(seq: int, work: float = 1000) -> ActiveJob:
    return QUEUED._replace(seq=seq, work=work)


def test_a_running_job_needs_the_rest_of_its_steps_and_its_decode() -> None:
    assert estimate(Load([denoising(1, 4)], [DONE]), 1) == (0, pytest.approx(6 + 2))


def test_a_decoding_job_needs_the_rest_of_its_decode() -> None:
    job = ActiveJob(1, "in_progress", "decoders", 10, 10, 1000, 100, running_s=11)
    assert estimate(Load([job], [DONE]), 1) == (0, pytest.approx(1))
    assert estimate(Load([job._replace(running_s=50)], [DONE]), 1) == (0, 0)


def test_queued_jobs_wait_for_the_running_one_and_those_before_them() -> None:
    load = Load([denoising(1, 4), waiting(2), waiting(3)], [DONE])
    assert estimate(load, 2) == (1, pytest.approx(6 + 10 + 2))
    assert estimate(load, 3) == (2, pytest.approx(6 + 10 + 10 + 2))


def test_two_denoisers_share_the_queue() -> None:
    load = Load([denoising(1, 5), denoising(2, 5), waiting(3), waiting(4), waiting(5)], [DONE])
    assert estimate(load, 5) == (3, pytest.approx((5 + 5 + 10 + 10) / 2 + 10 + 2))


def test_a_larger_job_takes_longer() -> None:
    assert estimate(Load([waiting(1), waiting(2, work=5000)], [DONE]), 2) == (2, pytest.approx(10 + 50 + 2))


def test_the_first_job_ever_is_judged_by_its_own_steps_and_nothing_is_claimed_before_them() -> None:
    assert estimate(Load([waiting(1)], []), 1) == (1, None)
    assert estimate(Load([denoising(1, 0)], []), 1) == (0, None)
    assert estimate(Load([denoising(1, 4)], []), 1) == (0, pytest.approx(6))


def test_retry_after_is_when_the_next_place_is_free() -> None:
    assert retry_after_s(Load([waiting(1)], [])) == UNKNOWN_RETRY_S
    assert retry_after_s(Load([denoising(1, 4), waiting(2)], [DONE])) == 6
    assert retry_after_s(Load([denoising(1, 4), denoising(2, 8), waiting(3)], [DONE])) == 4
    assert retry_after_s(Load([denoising(1, 10), waiting(2)], [DONE])) == 1
