"""How long a job will take, from what the last ones took."""

from collections.abc import Iterable
from math import ceil
from statistics import median
from typing import NamedTuple

from serve.jobs import ActiveJob, Load

UNKNOWN_RETRY_S = 10  # until one video has been made, nobody knows


class Estimate(NamedTuple):
    """Where a job stands.

    Attributes:
        position: jobs that start before it, and itself; 0 once it runs.
        eta_s: seconds until its video is there, or None while nothing was measured.
    """

    position: int
    eta_s: float | None


class Rates(NamedTuple):
    """Seconds of denoise per unit of work, and of all that follows per pixel-frame.

    Medians of the last jobs, so that one slow job does not spoil them.
    """

    denoise: float
    decode: float


def estimate(load: Load, seq: int) -> Estimate:
    """The estimate of the active job ``seq``.

    The denoisers take the queued jobs in order of arrival, as many at a time as are running now; what a running
    job still needs comes first.
    """
    job = next(job for job in load.active if job.seq == seq)
    ahead = [other for other in load.active if other.status == "queued" and other.seq < seq]
    position = len(ahead) + 1 if job.status == "queued" else 0
    rates = _rates(load)
    if rates is None:
        return Estimate(position, None)
    wait = _wait_s(load, ahead, rates) if job.status == "queued" else 0.0
    return Estimate(position, wait + _denoise_s(job, rates) + _decode_s(job, rates))


def retry_after_s(load: Load) -> int:
    """Whole seconds until the first of the queued jobs is expected to start and leaves its place."""
    rates = _rates(load)
    return max(1, ceil(_wait_s(load, [], rates))) if rates else UNKNOWN_RETRY_S


def _wait_s(load: Load, ahead: Iterable[ActiveJob], rates: Rates) -> float:
    """Seconds until every denoiser has done its current job and those ``ahead``."""
    denoising = [job for job in load.active if _is_denoising(job)]
    remaining = sum(_denoise_s(job, rates) for job in (*denoising, *ahead))
    return remaining / max(1, len(denoising))


def _denoise_s(job: ActiveJob, rates: Rates) -> float:
    if job.status == "in_progress" and not _is_denoising(job):
        return 0.0
    return max(0.0, job.work * rates.denoise * (1 - job.step / job.steps))


def _decode_s(job: ActiveJob, rates: Rates) -> float:
    whole = job.pixel_frames * rates.decode
    if job.status == "queued" or _is_denoising(job):
        return whole
    return max(0.0, whole + job.work * rates.denoise - job.running_s)


def _is_denoising(job: ActiveJob) -> bool:
    return job.status == "in_progress" and job.stage == "denoiser"


def _rates(load: Load) -> Rates | None:
    if load.finished:
        return Rates(
            median(job.stage_durations["denoiser"] / job.work for job in load.finished),
            median(_after_denoise(job.stage_durations) / job.pixel_frames for job in load.finished),
        )
    begun = [job for job in load.active if _is_denoising(job) and job.step > 0]
    if not begun:
        return None
    return Rates(sum(job.running_s for job in begun) / sum(job.work * job.step / job.steps for job in begun), 0.0)


def _after_denoise(durations: dict[str, float]) -> float:
    stages = list(durations)
    return sum(durations[stage] for stage in stages[stages.index("denoiser") + 1 :])
