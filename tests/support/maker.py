"""A server with the real routes and job table, in which a thread makes the videos: a few bytes each, and no model."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fake_server import running
from local_api import DURATIONS, MP4, LocalIngress
from running_server import free_port

from cosmos3_models.checkpoint.folder import DEMO
from serve.app import AppArgs
from serve.graph.artifacts import Artifact
from serve.http.access import OPEN
from serve.http.routes import create_api
from serve.jobs.job import Job, Outcome, StoredArtifact
from serve.jobs.media_store import MediaStore
from serve.jobs.migrations import prepare
from serve.jobs.table import JobTable

FAILING = "fails"


class Maker:
    """Makes the jobs of a table one after the other.

    Attributes:
        url: of the server.
        pause_s: a video takes.
        failing: a word that makes the video of a prompt fail.
        jobs: those that it has made or failed, in that order.
        may: cleared, it makes nothing.
    """

    def __init__(self, args: AppArgs) -> None:
        self.pause_s, self.failing = 0.0, FAILING
        self.jobs: list[Job] = []
        self.may = threading.Event()
        self.may.set()
        self._args, self._port, self._ended = args, free_port(), False
        self.url = f"http://127.0.0.1:{self._port}"
        prepare(args.job_settings().database_url)
        self._thread = threading.Thread(target=lambda: asyncio.run(self._make_all()))
        self._thread.start()

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Answer requests; at the end, break all connections off."""
        with running(create_api(LocalIngress(self._args), OPEN), self._port):
            yield

    def end(self) -> None:
        self._ended = True
        self._thread.join()

    async def _make_all(self) -> None:
        model = self._args.model_settings("cpu").names[0]
        table, media = JobTable(self._args.job_settings(), model), MediaStore(self._args.media())
        while not self._ended:
            job = await table.claim() if self.may.is_set() else None
            if job is None:
                await asyncio.sleep(0.01)
            else:
                await self._make(job, table, media)
        await table.close()

    async def _make(self, job: Job, table: JobTable, media: MediaStore) -> None:
        assert job.owner is not None
        await table.start(job.owner)
        await asyncio.sleep(self.pause_s)
        self.jobs.append(job)
        if self.failing in job.params["prompt"]:
            await table.fail(job.owner, Outcome("stage_failed", "the denoiser failed"))
            return
        still = job.params["num_frames"] == 1
        artifact = Artifact.of("image" if still else "video", MP4 + str(job.params["seed"]).encode())
        stored = StoredArtifact.of(artifact, job.owner)
        await media.write(stored.file, artifact.data)
        await table.complete(job, [stored], DURATIONS)


@contextmanager
def maker(folder: Path, **args: Any) -> Iterator[Maker]:
    """A server whose data lies in ``folder``."""
    with resting_maker(folder, **args) as made, made.listening():
        yield made


@contextmanager
def resting_maker(folder: Path, **args: Any) -> Iterator[Maker]:
    """The same, but that it does not listen yet."""
    made = Maker(AppArgs(checkpoint=DEMO, data_dir=str(folder), **args))
    try:
        yield made
    finally:
        made.may.set()
        made.end()
