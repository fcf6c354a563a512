"""What the stored jobs of a queue say about how busy the denoiser was and what went on beside it."""

from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

from sqlalchemy import create_engine, select

from serve.jobs.columns import JOBS

Span = tuple[float, float]
"""From when to when, in seconds."""


def read_jobs(table: Path, ids: Iterable[str]) -> list[dict[str, Any]]:
    """The rows of these jobs, in order of arrival. They hold the start of the denoise, which the API does not tell."""
    engine = create_engine(f"sqlite:///{table}")
    with engine.connect() as connection:
        found = connection.execute(select(JOBS).where(JOBS.c.id.in_(list(ids))).order_by(JOBS.c.seq)).mappings()
        jobs = [dict(job) for job in found]
    engine.dispose()
    return jobs


def queue_times(jobs: list[dict[str, Any]]) -> dict[str, float]:
    """Seconds and shares of completed jobs on one denoiser.

    Returns:
        ``wall_s``: from the first job's arrival to the last one's completion.
        ``denoise_s``, ``decode_s``: sums over the jobs.
        ``busy_share``: of the time from the first denoise's start to the last one's end, what denoises took.
        ``gap_s``: the longest time between the end of a denoise and the start of the next.
        ``overlap_s``, ``overlap_share``: how long decodes went on beside another job's denoise, and the share of
            all decoding.
    """
    denoises = [_lap(job["started_at"], job["stage_durations"]["denoiser"]) for job in jobs]
    decodes = [_lap(end, job["stage_durations"]["decoders"]) for (_, end), job in zip(denoises, jobs, strict=True)]
    ordered = sorted(denoises)
    window = (ordered[0][0], max(end for _, end in denoises))
    overlap_s = sum(
        covered(decode, [other for j, other in enumerate(denoises) if j != i]) for i, decode in enumerate(decodes)
    )
    decode_s = sum(end - start for start, end in decodes)
    return {
        "wall_s": max(job["completed_at"] for job in jobs) - min(job["created_at"] for job in jobs),
        "denoise_s": sum(end - start for start, end in denoises),
        "decode_s": decode_s,
        "busy_share": covered(window, denoises) / (window[1] - window[0]),
        "gap_s": max((after[0] - before[1] for before, after in pairwise(ordered)), default=0.0),
        "overlap_s": overlap_s,
        "overlap_share": overlap_s / decode_s,
    }


def covered(span: Span, others: Iterable[Span]) -> float:
    """How long any of the others went on during ``span``."""
    seconds, reached = 0.0, span[0]
    for start, end in sorted(others):
        start, end = max(start, reached), min(end, span[1])
        if end > start:
            seconds, reached = seconds + end - start, end
    return seconds


def _lap(start: float, seconds: float) -> Span:
    return start, start + seconds
