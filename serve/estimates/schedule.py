"""When the active jobs will end, from the times of completed ones."""

import heapq
from collections import defaultdict
from collections.abc import Iterable, Sequence
from math import ceil, inf, isfinite
from statistics import median
from typing import NamedTuple

from serve.estimates.cost import Cost
from serve.estimates.observed_jobs import ActiveJob, FinishedJob
from serve.estimates.rates import Rate, Sample, Work
from serve.graph.stage_names import DENOISER, PROMPT_UPSAMPLER, VIDEO_ENCODER

UNKNOWN_RETRY_S = 10  # without an estimate
STEP_AGE_S = 0.5  # by which the record of a step may be late
LEAST_S = 1e-3  # of a stage: two clocks may disagree on one that took no time


class Estimate(NamedTuple):
    """A job's place in the queue and the time to its completion.

    Attributes:
        position: 1 starts next; 0 once it runs.
        eta_s: seconds until its video is complete; None if no comparable job has completed.
    """

    position: int
    eta_s: float | None

    @property
    def rounded_eta_s(self) -> float | None:
        """``eta_s`` to a tenth, as responses state it."""
        return None if self.eta_s is None else round(self.eta_s, 1)


class Rates:
    """Measured times by kind: encodes and decodes by model and device, denoises by approximation as well."""

    def __init__(self, finished: Iterable[FinishedJob]) -> None:
        self._samples: dict[tuple[str, ...], list[Sample]] = defaultdict(list)
        self._upsample_s: list[float] = []
        for job in finished:
            if (upsample_s := job.stage_durations.get(PROMPT_UPSAMPLER)) is not None:
                self._upsample_s.append(upsample_s)
            denoise_s = job.stage_durations[DENOISER]
            # If the decoder was busy, the video was decoded after the one before it.
            decode_s = max(LEAST_S, min(job.wall_s - denoise_s, job.after_last_s))
            self._add_denoise(job.cost, job.steps, job.steps, denoise_s)
            if (encode_s := job.stage_durations.get(VIDEO_ENCODER)) and job.cost.encode:
                encode = Sample(_encode_work(job.cost), max(LEAST_S, encode_s), job.cost.encode)
                self._samples[("encode", job.cost.model)].append(encode)
            self._samples[("decode", job.cost.model)].append(Sample(_decode_work(job.cost), decode_s, job.cost.decode))
        self._rates: dict[tuple[str, ...], Rate] = {}

    @property
    def empty(self) -> bool:
        """Whether no job has completed."""
        return not self._samples

    def with_running(self, active: Iterable[ActiveJob]) -> "Rates":
        """Return these rates, with samples of running jobs that are larger than any completed one."""
        larger = [job for job in active if _is_denoising(job) and job.step and job.cost and self._learns_from(job)]
        if not larger:
            return self
        rates = Rates([])
        rates._upsample_s = self._upsample_s
        for kind, samples in self._samples.items():
            rates._samples[kind] = list(samples)
        for job in larger:
            assert job.cost is not None
            # At a random moment, half of the next step is done on average.
            rates._add_denoise(job.cost, job.step + 0.5, job.steps, max(STEP_AGE_S, job.running_s))
        return rates

    def denoise(self, cost: Cost) -> Rate:
        """Return the rate of this approximation or, before it has been measured, of all."""
        exactly = ("denoise", cost.model, cost.mode)
        return self._rate(exactly if exactly in self._samples else ("denoise", cost.model))

    def denoise_s(self, cost: Cost | None, steps: int) -> float:
        """Return the seconds of a whole denoise; infinite without a comparable sample."""
        if cost is None:
            return inf
        return self.denoise(cost).seconds(_denoise_work(cost, steps, steps))

    def upsample_s(self, job: ActiveJob) -> float:
        """Return the seconds until a job's prompt is rewritten: the median of all; 0 before those are measured."""
        return median(self._upsample_s) if job.upsampling_pending and self._upsample_s else 0.0

    def encode_s(self, cost: Cost | None) -> float:
        """Return the seconds before the denoise; before those are measured, at the denoiser's speed."""
        if cost is None or not cost.encode:
            return 0.0
        measured = self._rate(("encode", cost.model)).seconds(_encode_work(cost))
        return measured if isfinite(measured) else self.denoise(cost).per_flop * cost.encode

    def decode_s(self, cost: Cost | None) -> float:
        """Return the seconds after the denoise; before those are measured, at the denoiser's speed."""
        if cost is None:
            return inf
        measured = self._rate(("decode", cost.model)).seconds(_decode_work(cost))
        return measured if isfinite(measured) else self.denoise(cost).per_flop * cost.decode

    def remaining_s(self, job: ActiveJob) -> float:
        """Return the remaining seconds of a running denoise.

        Between two recorded steps, its running time tells the progress. A job that is faster or slower than estimated
        is expected to continue at its own pace.
        """
        whole = self.denoise_s(job.cost, job.steps)
        if job.cost is None or not isfinite(whole):
            return inf
        rate = self.denoise(job.cost)
        done, next_one = (rate.seconds(_denoise_work(job.cost, step, job.steps)) for step in (job.step, job.step + 1))
        if _has_a_pace(job) and job.running_s < done:
            return (whole - done) * job.running_s / done
        if job.running_s > next_one + STEP_AGE_S:
            return max(0.0, whole - next_one) * job.running_s / next_one
        return max(0.0, whole - job.running_s)

    def _learns_from(self, job: ActiveJob) -> bool:
        """Whether a running job is larger than any measured one, and has a pace or is the only source of one."""
        assert job.cost is not None
        if self.denoise(job.cost).largest >= _denoise_work(job.cost, job.steps, job.steps).flops:
            return False
        return _has_a_pace(job) or not isfinite(self.denoise_s(job.cost, job.steps))

    def _add_denoise(self, cost: Cost, done: float, steps: int, seconds: float) -> None:
        sample = Sample(
            _denoise_work(cost, done, steps), max(LEAST_S, seconds), _denoise_work(cost, steps, steps).flops
        )
        for kind in (("denoise", cost.model, cost.mode), ("denoise", cost.model)):
            self._samples[kind].append(sample)

    def _rate(self, kind: tuple[str, ...]) -> Rate:
        if kind not in self._rates:
            self._rates[kind] = Rate(self._samples.get(kind, ()))
        return self._rates[kind]


class Schedule:
    """When the active jobs are expected to end.

    The denoisers take waiting jobs in order of arrival, but for those whose prompts are not rewritten yet, as many at
    a time as are denoising now, and one video decoder takes their results. Requests of the sync route and of handle
    calls wait before the denoisers instead of in the table, and so start before the jobs there.

    Args:
        rates: measured times.
        active: jobs in order of arrival.
        direct: requests of the sync route and of handle calls.
    """

    def __init__(self, rates: Rates, active: Sequence[ActiveJob], direct: Sequence[ActiveJob] = ()) -> None:
        self._rates = rates.with_running([*active, *direct])
        queued = [job for job in active if job.status == "queued"]
        self._positions = {job.seq: position for position, job in enumerate(queued, start=1)}
        ahead = [request for request in direct if request.status == "queued"]
        running = [job for job in (*active, *direct) if job.status != "queued"]
        denoised = [(self._denoised_s(job), job) for job in running]
        free = [end_s for end_s, job in denoised if _is_denoising(job)] or [0.0]
        heapq.heapify(free)
        starts = [(self._take(free, job, denoised), job) for job in self._in_order([*ahead, *queued], free[0])]
        self._next_start_s = next((start for start, job in starts if job.seq in self._positions), free[0])
        self._ends = self._decoded(denoised)

    def estimate(self, seq: int) -> Estimate:
        """Return the estimate of an active job; position 0 and no time for any other."""
        eta_s = self._ends.get(seq, inf)
        return Estimate(self._positions.get(seq, 0), eta_s if isfinite(eta_s) else None)

    @property
    def retry_after_s(self) -> int:
        """Whole seconds, at least 1, until the first queued job is expected to start and free its place."""
        return max(1, ceil(self._next_start_s)) if isfinite(self._next_start_s) else UNKNOWN_RETRY_S

    def _denoised_s(self, job: ActiveJob) -> float:
        """Return the seconds until a running job is denoised; zero or less if it already is."""
        if _is_denoising(job):
            return self._rates.remaining_s(job)
        return min(0.0, self._rates.denoise_s(job.cost, job.steps) - job.running_s)

    def _in_order(self, waiting: list[ActiveJob], free_s: float) -> list[ActiveJob]:
        """Return jobs in the order in which they start: a prompt that is rewritten for longer lets others pass."""
        return sorted(waiting, key=lambda job: max(0.0, self._rates.upsample_s(job) - free_s))

    def _take(self, free: list[float], job: ActiveJob, denoised: list[tuple[float, ActiveJob]]) -> float:
        """Assign a job to the denoiser that is free first; return when that is."""
        # While others are denoised, a prompt is rewritten and then a picture is encoded.
        start = max(free[0], self._rates.upsample_s(job) + self._rates.encode_s(job.cost))
        end = start + self._rates.denoise_s(job.cost, job.steps)
        heapq.heapreplace(free, end)
        denoised.append((end, job))
        return start

    def _decoded(self, denoised: list[tuple[float, ActiveJob]]) -> dict[int, float]:
        """Return when each job ends, by ``seq``."""
        ends, free = {}, -inf
        for end, job in sorted(denoised, key=lambda each: each[0]):
            free = max(0.0, max(free, end) + self._rates.decode_s(job.cost))
            ends[job.seq] = free
        return ends


def _is_denoising(job: ActiveJob) -> bool:
    return job.status == "in_progress" and job.stage == DENOISER


def _has_a_pace(job: ActiveJob) -> bool:
    """Whether a denoising job has run for long enough that a late record hardly changes its pace."""
    return job.step > 0 and job.running_s >= STEP_AGE_S


def _denoise_work(cost: Cost, done: float, steps: int) -> Work:
    full = cost.full_steps(done, steps)
    return Work(1, full * cost.passes, cost.text + full * cost.step)


def _encode_work(cost: Cost) -> Work:
    return Work(1, 0, cost.encode)


def _decode_work(cost: Cost) -> Work:
    return Work(1, 0, cost.decode)
