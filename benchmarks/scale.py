"""What driving jobs costs: the real ingress, runner and job table over denoisers that only keep time.

python -m benchmarks.scale
"""

import argparse
import asyncio
import json
import os
import tempfile
import time
from collections.abc import AsyncGenerator
from pathlib import Path
from statistics import median
from typing import Any

import httpx
import numpy as np
import ray
from numpy.typing import NDArray
from ray import serve
from sqlalchemy import create_engine, select

from benchmarks import processes
from benchmarks.server import is_healthy, wait_until
from cosmos3_models import GenerationParams
from cosmos3_models.media.mp4 import VideoWriter
from cosmos3_models.text.prompt import PromptIds
from serve.app import AppArgs, _deployment
from serve.graph.graph import Stages
from serve.graph.messages import LATENTS_COMPLETE, LATENTS_FOLLOW, DecodedVideo, DenoiserItem
from serve.ingress.ingress import Ingress
from serve.jobs.columns import JOBS
from serve.jobs.runner import SLOTS, JobRunner

REQUEST = {"prompt": "A red ball bounces.", "size": "64x64", "num_frames": 5}
POSTERS = 16  # clients that submit at the same time
STARTING_S = 300.0
PERIOD_S = 1.0  # between two looks at the queue


class Tokenizer:
    async def encode(self, _: GenerationParams) -> PromptIds:
        return PromptIds(np.zeros(1, dtype=np.int64), None)

    async def encode_all(self, batch: list[GenerationParams]) -> list[PromptIds]:
        return [await self.encode(params) for params in batch]


class Denoiser:
    """Every step takes as long as the other and computes nothing."""

    def __init__(self, step_s: float) -> None:
        self._step_s = step_s
        self._turn = asyncio.Lock()

    async def denoise(self, _: PromptIds, params: GenerationParams) -> AsyncGenerator[DenoiserItem, None]:
        async with self._turn:
            end = time.monotonic()
            for step in range(params.num_inference_steps):
                yield step
                end += self._step_s
                await asyncio.sleep(end - time.monotonic())
            yield params.num_inference_steps
        yield LATENTS_FOLLOW
        yield np.zeros(1, dtype=np.float32)
        yield LATENTS_COMPLETE

    def budget(self) -> None:
        """As on a CPU: nothing is known of its memory."""


class VideoDecoder:
    """The same small video every time."""

    def __init__(self) -> None:
        with VideoWriter(5, 64, 64, 24) as writer:
            writer.write(np.zeros((5, 64, 64, 3), dtype=np.uint8))
            self._video = DecodedVideo.of(writer.finish())

    async def decode(self, _: NDArray[np.float32], __: GenerationParams, ___: bool = False) -> DecodedVideo:
        return self._video


def main() -> None:
    """Print a line of JSON for each number of denoisers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--denoisers", type=int, nargs="+", default=[1, 8, 24, 64], help="replicas (%(default)s)")
    parser.add_argument("--jobs", type=int, default=4, help="jobs of each denoiser (%(default)s)")
    parser.add_argument("--steps", type=int, default=15, help="steps of a job (%(default)s)")
    parser.add_argument("--step-s", type=float, default=1.0, help="seconds of a step (%(default)s)")
    parser.add_argument("--database", help="URL of a PostgreSQL database; none: SQLite")
    parser.add_argument("--port", type=int, default=8126, help="port of the server (%(default)s)")
    args = parser.parse_args()
    ray.init(address="local", num_cpus=64, include_dashboard=False, log_to_driver=False)
    serve.start(http_options={"host": "127.0.0.1", "port": args.port})
    for denoisers in args.denoisers:
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps(measure(Path(folder), denoisers, args)), flush=True)
    serve.shutdown()


def measure(folder: Path, denoisers: int, args: argparse.Namespace) -> dict[str, Any]:
    """How busy the denoisers were, and the CPU milliseconds of each process per job and step.

    ``busy`` is the share of the time from the first denoise's start to the last one's end that the ideal schedule
    takes; ``cores`` are those in use meanwhile.
    """
    settings = AppArgs(data_dir=str(folder), database_url=args.database, max_queued_jobs=10_000)
    serve.run(application(settings, denoisers, args.step_s), name="cosmos3", route_prefix="/")
    url = f"http://127.0.0.1:{args.port}"
    wait_until(lambda: is_healthy(url), STARTING_S, period_s=0.2)
    jobs = denoisers * args.jobs
    request = REQUEST | {"num_inference_steps": args.steps}
    before, start = processes.cpu_s(os.getpid()), time.perf_counter()
    post_s = asyncio.run(submit(url, request, jobs))
    submitted_s = time.perf_counter() - start
    rows = wait_for_all(settings.job_settings().database_url, jobs)
    wall_s, used = time.perf_counter() - start, processes.growth(before, processes.cpu_s(os.getpid()))
    busiest = list(used.items())[:9]
    serve.delete("cosmos3")
    starts = [row["started_at"] for row in rows]
    ends = [row["started_at"] + row["stage_durations"]["denoiser"] for row in rows]
    ideal_s = args.jobs * args.steps * args.step_s
    return {
        "denoisers": denoisers,
        "jobs": jobs,
        "busy": round(ideal_s / (max(ends) - min(starts)), 4),
        "submitted_per_s": round(jobs / submitted_s, 1),
        "post_p50_ms": round(median(post_s) * 1000, 1),
        "cpu_ms_per_job_and_step": {name: round(s * 1000 / jobs / args.steps, 2) for name, s in busiest},
        "cores": {name: round(s / wall_s, 3) for name, s in busiest},
    }


def application(args: AppArgs, denoisers: int, step_s: float) -> Any:
    tokenizer = _deployment(Tokenizer, args, slots=8).bind()
    stages = Stages(
        tokenizer,
        tokenizer,  # nothing begins with a picture
        _deployment(Denoiser, args, slots=1).options(num_replicas=denoisers).bind(step_s),
        _deployment(VideoDecoder, args, slots=1).bind(),
        tokenizer,  # no sound is made
    )
    settings, media, names = args.job_settings(), args.media(), args.model_names()
    runners = 1 + denoisers * 2 // SLOTS  # as many jobs wait as are denoised
    runner = _deployment(JobRunner, args, slots=SLOTS).options(num_replicas=runners)
    ingress = _deployment(serve.ingress()(Ingress), args, slots=256)
    return ingress.bind(
        stages, runner.bind(stages, settings, media, names[0]), args.model_settings("cpu"), settings, media
    )


async def submit(url: str, request: dict[str, Any], jobs: int) -> list[float]:
    """Seconds of each submission; ``POSTERS`` clients share them."""
    seconds: list[float] = []
    left = iter(range(jobs))

    async def post(client: httpx.AsyncClient) -> None:
        for _ in left:
            start = time.perf_counter()
            (await client.post("/v1/videos", json=request)).raise_for_status()
            seconds.append(time.perf_counter() - start)

    async with httpx.AsyncClient(base_url=url, timeout=120) as client:
        await asyncio.gather(*(post(client) for _ in range(POSTERS)))
    return seconds


def wait_for_all(database_url: str, jobs: int) -> list[Any]:
    """The jobs' rows, once all of them are completed."""
    engine = create_engine(database_url)
    done = select(JOBS).where(JOBS.c.status == "completed").order_by(JOBS.c.seq.desc()).limit(jobs)
    while True:
        with engine.connect() as connection:
            rows = list(connection.execute(done).mappings())
        if len(rows) >= jobs:
            engine.dispose()
            return rows
        time.sleep(PERIOD_S)


if __name__ == "__main__":
    main()
