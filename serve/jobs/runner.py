"""The deployment that makes stored jobs into videos, each inside a Serve request.

So Serve sees the work: it drains before a replica stops, and it can be scaled by.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from itertools import chain, repeat
from typing import Any, TypeVar

from ray import serve

from cosmos3_models import GenerationParams
from serve.errors import DatabaseUnavailable, MediaUnavailable, NotReady, QueueFull, ServingError
from serve.graph.batching import Coalesced
from serve.graph.graph import Graph, Stages
from serve.graph.stage_names import DENOISER, STORING
from serve.jobs.job_schema import Job, prepare
from serve.jobs.media_store import MediaStore
from serve.jobs.metrics import JobMetrics, log_job
from serve.jobs.table import FailedJob, JobSettings, JobTable, Outcome, Progress
from serve.jobs.videos import SUFFIX, remove_files
from serve.schema import FinishedVideo

T = TypeVar("T")

logger = logging.getLogger("ray.serve")

SLOTS = 64  # jobs that one runner drives at a time
HEARTBEAT_PERIOD_S = 0.25  # how soon a runner hears that its job was cancelled
LEASE_PART = 3  # a lease is renewed each third of its length
NOTIFY_PERIOD_S = 0.05
NOTIFY_DELAY_S = 0.1
RECONCILE_PERIOD_S = 1.0
EXPIRY_PERIOD_S = 60.0
ORPHAN_PERIOD_S = 600.0
ORPHAN_AGE_S = 3600.0  # at least: a file without a record may be one whose record is about to be written
RELEASE_DELAY_S = 2.0
DATABASE_WAIT_S = 1.0
STORE_WAITS_S = (0.5, 1, 2, 4, 8, 15)  # between tries to store a finished video; the last one again and again


NOT_BEGUN = Progress()


class Revoked(Exception):
    """The job is no longer this runner's, or may not go on."""


@dataclass
class Held:
    """A claimed job while it is worked on."""

    job: Job
    owner: str
    attempts: int = 0
    progress: Progress = NOT_BEGUN
    written: Progress = NOT_BEGUN
    written_at: float = field(default_factory=time.monotonic)
    ending: bool = False  # its last word is being written, which tells whether the job is still ours
    work: "asyncio.Task[None] | None" = None


class JobRunner:
    """Claims jobs, drives the graph for them, stores what comes out.

    Args:
        stages: handles of the model stages.
        settings: of the job table.
        media_url: where the videos go.
        model: whose jobs to make.
    """

    def __init__(
        self,
        stages: Stages,
        settings: JobSettings,
        media_url: str,
        model: str,
    ) -> None:
        self._folder = prepare(settings.database_url)  # of the media store; others may use the store as well
        self._table = JobTable(settings, model)
        self._media = MediaStore(media_url)
        self._graph = Graph(stages, settings.max_attempts)
        self._settings = settings
        self._runners: Any = None  # this deployment's own handle
        self._connecting = False
        self._notifications = Coalesced(self._send_notification, NOTIFY_PERIOD_S)
        self._held: dict[str, Held] = {}
        self._draining = False
        self._metrics = JobMetrics()
        self._background: set[asyncio.Future[None]] = set()
        upkeep = {
            self._heartbeat: HEARTBEAT_PERIOD_S,
            self._reconcile: RECONCILE_PERIOD_S,
            self.remove_expired: EXPIRY_PERIOD_S,
            self.remove_orphans: ORPHAN_PERIOD_S,
        }
        loop = asyncio.get_running_loop()
        self._upkeep = [loop.create_task(_forever(action, period_s)) for action, period_s in upkeep.items()]

    async def work(self) -> None:
        """Claim the oldest free job and see it to its end; return at once if none is to be had."""
        job = None if self._draining else await self._table.claim()
        if job is None or job.owner is None:
            return
        held = self._held[job.owner] = Held(job, job.owner)
        held.work = asyncio.create_task(self._make(held))
        self._in_background(self._claim_more)
        try:
            await asyncio.wait([held.work])
            if held.work.cancelled():
                await self._settle(held)
            else:
                held.work.result()  # raises what should not have happened
        except asyncio.CancelledError:  # this replica must go at once
            held.work.cancel()
            await asyncio.wait([held.work])
            await self._table.release(held.owner)
            raise
        finally:
            del self._held[job.owner]
        self._in_background(self._claim_more)

    def drain(self) -> int:
        """Claim no job from now on; how many are being made."""
        self._draining = True
        return len(self._held)

    async def close(self) -> None:
        """End the upkeep."""
        tasks = [*self._upkeep, *self._background]
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        await self._table.close()

    async def _make(self, held: Held) -> None:
        """One claim of a job, from its prompt to its record's last word."""
        try:
            await self._store(held, await self._drive(held))
        except Revoked:
            await self._settle(held)
        except (QueueFull, NotReady) as error:
            await self._give_back(held, error)
        except ServingError as error:
            await self._fail(held, Outcome(error.code, error.message))
        except Exception:
            logger.exception(f"Job {held.job.id} failed.")
            await self._fail(held, Outcome(ServingError.code, "internal error; the server's log has the details"))

    async def _drive(self, held: Held) -> FinishedVideo:
        """Run the graph, and count each time that it begins to denoise."""
        params = GenerationParams.model_construct(**held.job.params)  # stored by whatever rules held then
        async with aclosing(self._graph.run(params, held.job.model)) as events:
            async for event in events:
                if event["type"] == "video":
                    return event
                held.progress = Progress(
                    event["stage"], event["step"] if event["stage"] == DENOISER else held.job.steps
                )
                if held.progress == Progress(DENOISER, 0):
                    await self._start(held)
                elif event["stage"] != DENOISER:
                    self._in_background(self._heartbeat)  # the denoiser is free: who counts the busy ones should know
        raise RuntimeError("the graph ended without a video")

    async def _start(self, held: Held) -> None:
        started = await _persist(lambda: self._table.start(held.owner))
        if started is None:
            raise Revoked
        held.attempts = started.attempts
        self._metrics.started(started)
        _log("started", held, attempt=started.attempts, waited_s=round(started.waited_s, 3))
        # The job before this one is about to be written down as denoised; until then it counts as one more denoiser.
        asyncio.get_running_loop().call_later(NOTIFY_DELAY_S, self._in_background, self._claim_more)

    async def _store(self, held: Held, video: FinishedVideo) -> None:
        """Files first, then the record that names them: whoever reads a record finds its files."""
        held.progress = Progress(STORING, held.job.steps)
        start = time.perf_counter()
        files = {
            SUFFIX["video"]: video["mp4"],
            SUFFIX["thumbnail"]: video["thumbnail"],
            SUFFIX["spritesheet"]: video["spritesheet"],
        }
        media = f"{self._folder}/{held.owner}"
        for suffix, data in files.items():
            await self._write(media + suffix, data)
        durations = video["record"]["stage_durations"] | {STORING: round(time.perf_counter() - start, 3)}
        size = sum(map(len, files.values()))
        held.ending = True
        if not await _persist(lambda: self._table.complete(held.owner, media, size, durations)):
            with suppress(MediaUnavailable):  # the sweep of files without a record will find them
                await remove_files(self._media, media)
            raise Revoked
        self._metrics.completed(held.job, durations, size)

    async def _write(self, name: str, data: bytes) -> None:
        """Store a file. A video that took minutes to make waits for the store until its job's deadline, which ends
        this task."""
        for wait_s in chain(STORE_WAITS_S, repeat(STORE_WAITS_S[-1])):
            try:
                return await self._media.write(name, data)
            except MediaUnavailable:
                logger.warning(f"The media store refuses {name}; next try in {wait_s} s.", exc_info=True)
                await asyncio.sleep(wait_s)

    async def _give_back(self, held: Held, error: ServingError) -> None:
        """Let the job be claimed again, unless it has been begun as often as it may."""
        if held.attempts >= self._settings.max_attempts:
            return await self._fail(held, Outcome(error.code, error.message))
        held.ending = True
        if not await _persist(lambda: self._table.release(held.owner, RELEASE_DELAY_S)):
            return self._stopped(held)
        self._metrics.retried()
        _log("given back", held, reason=error.code)

    async def _fail(self, held: Held, outcome: Outcome) -> None:
        held.ending = True
        self._ended(held, await _persist(lambda: self._table.fail(held.owner, outcome)))

    async def _settle(self, held: Held) -> None:
        """Write down why the job was taken from this runner, if it was not deleted or given to another one."""
        held.ending = True  # a heartbeat must not cancel this: the job would be counted twice
        failed = await _persist(lambda: self._table.settle(held.owner))
        if failed:
            self._metrics.revoked()
        self._ended(held, failed)

    def _ended(self, held: Held, failed: Sequence[FailedJob]) -> None:
        """Count a job whose record this runner ended, or none, because the job is another's or is gone."""
        if failed:
            self._metrics.ended.failed(failed)
        else:
            self._stopped(held)

    def _stopped(self, held: Held) -> None:
        self._metrics.revoked()
        _log("stopped", held)

    async def _heartbeat(self) -> None:
        """Stop what was cancelled, deleted or lost; write progress; hold the leases."""
        if not (holding := list(self._held.values())):
            return
        owners = [held.owner for held in holding]
        oldest = time.monotonic() - self._settings.lease_s / LEASE_PART
        due = [held for held in holding if held.progress != held.written or held.written_at < oldest]
        progress = {held.owner: held.progress for held in due}
        kept = await (self._table.renew(progress, owners) if due else self._table.kept(owners))
        for held in due:
            held.written, held.written_at = progress[held.owner], time.monotonic()
        for held in holding:
            if held.owner not in kept and held.work is not None and not held.ending:
                held.work.cancel()

    async def _reconcile(self) -> None:
        """Take up what nobody works on: jobs whose runner died, or whose start was not heard."""
        self._metrics.ended.failed(await self._table.settle())
        self._metrics.queued(await self._table.queued())
        await self._claim_more()

    async def _claim_more(self) -> None:
        """Ask for a claim if it would get a job: to look costs a fraction of a request."""
        if await self._table.may_claim():
            self._notify()

    async def remove_expired(self) -> None:
        """Forget ended jobs whose time is over, and their files."""
        for job in await self._table.expire():
            if job.media:
                await remove_files(self._media, job.media)

    async def remove_orphans(self) -> None:
        """Remove what runners of this database left that died between a file and its record.

        Only files that are older than any record: a database that was put back to an earlier state may miss some.
        """
        old = await self._media.older_than(max(ORPHAN_AGE_S, self._settings.retention_s), self._folder)
        used = await self._table.media()
        orphans = [name for name in old if name.split("/")[-1].split(".")[0] not in used]
        await self._media.remove(*orphans)
        if orphans:
            logger.info(f"Removed {len(orphans)} files without a record.")

    def _in_background(self, action: Callable[[], Awaitable[None]]) -> None:
        """Run a part of the upkeep now, beside what is going on."""
        task = asyncio.ensure_future(_logged(action))
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    def _notify(self) -> None:
        """Ask any runner to claim a job. A runner without a free slot does not: each free one asks for itself."""
        if len(self._held) < SLOTS:
            self._notifications()

    def _send_notification(self) -> None:
        if self._runners is not None:
            self._runners.work.remote()
        elif not self._connecting:
            self._connecting = True
            self._in_background(self._connect)

    async def _connect(self) -> None:
        """Ask Serve's controller for the handle, which blocks while the controller is away, and notify."""
        try:
            app = serve.get_replica_context().app_name
            self._runners = await asyncio.to_thread(serve.get_deployment_handle, type(self).__name__, app)
            self._runners.work.remote()
        finally:
            self._connecting = False


async def _persist(write: Callable[[], Awaitable[T]]) -> T:
    """The result of a write that is repeated until the database is there."""
    while True:
        try:
            return await write()
        except DatabaseUnavailable:
            logger.warning("The job table cannot be reached; next try in %s s.", DATABASE_WAIT_S, exc_info=True)
            await asyncio.sleep(DATABASE_WAIT_S)


async def _forever(action: Callable[[], Awaitable[None]], period_s: float) -> None:
    while True:
        await asyncio.sleep(period_s)
        await _logged(action)


async def _logged(action: Callable[[], Awaitable[None]]) -> None:
    try:
        await action()
    except Exception:  # what fails now is tried again in a moment
        logger.warning("Upkeep of the jobs failed.", exc_info=True)


def _log(event: str, held: Held, **fields: Any) -> None:
    log_job(event, held.job.id, held.job.request_id, **fields)
