"""The deployment that makes videos of stored jobs, each inside a Serve request.

So Serve sees the work: a replica drains before it stops, and autoscaling can count it.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, repeat
from typing import Any, TypeVar

from ray import serve

from cosmos3_models import GenerationParams
from serve.errors import DatabaseUnavailable, MediaUnavailable, NotReady, QueueFull, ServingError
from serve.graph.artifacts import FinishedRequest
from serve.graph.batching import Coalesced
from serve.graph.graph import Graph, Reference, Stages
from serve.graph.stage_names import DENOISER, STORING
from serve.jobs.files import JobFiles
from serve.jobs.job import ClaimProgress, FailedJob, Job, JobSettings, Outcome, StoredArtifact
from serve.jobs.media_store import MediaStore
from serve.jobs.metrics import JobMetrics, log_job
from serve.jobs.migrations import prepare
from serve.jobs.table import JobTable

T = TypeVar("T")

logger = logging.getLogger("ray.serve")

SLOTS = 64  # jobs that one runner drives at a time
HEARTBEAT_PERIOD_S = 0.25  # the delay until a runner notices that its job was cancelled
LEASE_PART = 3  # a lease is renewed after this part of its length
NOTIFY_PERIOD_S = 0.05
NOTIFY_DELAY_S = 0.1
RECONCILE_PERIOD_S = 1.0
EXPIRY_PERIOD_S = 60.0
ORPHAN_PERIOD_S = 600.0
RELEASE_DELAY_S = 2.0
DATABASE_WAIT_S = 1.0
STORE_WAITS_S = (0.5, 1, 2, 4, 8, 15)  # between attempts to store a file; the last one repeats

NOT_STARTED = ClaimProgress()


class Revoked(Exception):
    """The job no longer belongs to this runner, or may not continue."""


@dataclass
class Claim:
    """A claimed job while a runner works on it.

    Attributes:
        progress: what the next heartbeat writes; ``written`` is what the last one wrote.
        ending: the record's end is being written, and that write tells whether the job still belongs to the runner.
    """

    job: Job
    owner: str
    attempts: int = 0
    progress: ClaimProgress = NOT_STARTED
    written: ClaimProgress = NOT_STARTED
    written_at: float = field(default_factory=time.monotonic)
    ending: bool = False
    work: "asyncio.Task[None] | None" = None


class JobRunner:
    """Claims jobs, runs the graph for them, and stores the artifacts.

    Args:
        stages: handles of the model stages.
        settings: of the job table.
        media_url: a path or an fsspec URL, where the files are stored.
        model: whose jobs to make.

    Attributes:
        files: of the jobs.

    Raises:
        ValueError: the database is of another kind, or of a newer release.
        TimeoutError: the database cannot be reached.
    """

    def __init__(
        self,
        stages: Stages,
        settings: JobSettings,
        media_url: str,
        model: str,
    ) -> None:
        self._folder = prepare(settings.database_url)  # in the media store, which other databases may use as well
        self._table = JobTable(settings, model)
        self._media = MediaStore(media_url)
        self.files = JobFiles(self._table, self._media, self._folder)
        self._graph = Graph(stages, settings.max_attempts)
        self._settings = settings
        self._runners: Any = None  # this deployment's own handle
        self._connecting = False
        self._notifications = Coalesced(self._send_notification, NOTIFY_PERIOD_S)
        self._claims: dict[str, Claim] = {}
        self._draining = False
        self._metrics = JobMetrics()
        self._background: set[asyncio.Future[None]] = set()
        upkeep: dict[Callable[[], Awaitable[None]], float] = {
            self._heartbeat: HEARTBEAT_PERIOD_S,
            self._reconcile: RECONCILE_PERIOD_S,
            self.files.remove_expired: EXPIRY_PERIOD_S,
            partial(self.files.remove_orphans, settings.retention_s): ORPHAN_PERIOD_S,
        }
        loop = asyncio.get_running_loop()
        self._upkeep = [loop.create_task(_forever(action, period_s)) for action, period_s in upkeep.items()]

    async def work(self) -> None:
        """Claim the oldest free job and run it to its end; return at once if there is none.

        Raises:
            DatabaseUnavailable: no job could be claimed.
        """
        job = None if self._draining else await self._table.claim()
        if job is None or job.owner is None:
            return
        claim = self._claims[job.owner] = Claim(job, job.owner)
        claim.work = asyncio.create_task(self._make(claim))
        self._in_background(self._claim_more)
        try:
            await asyncio.wait([claim.work])
            if claim.work.cancelled():
                await self._fail_expired(claim)
            else:
                claim.work.result()  # raises errors that nothing expected
        except asyncio.CancelledError:  # this replica must stop at once
            claim.work.cancel()
            await asyncio.wait([claim.work])
            await self._table.release(claim.owner)
            raise
        finally:
            del self._claims[job.owner]
        self._in_background(self._claim_more)

    def drain(self) -> int:
        """Claim no more jobs; return how many are in progress here."""
        self._draining = True
        return len(self._claims)

    async def close(self) -> None:
        """Stop the upkeep and close the table."""
        tasks = [*self._upkeep, *self._background]
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        await self._table.close()

    async def _make(self, claim: Claim) -> None:
        """Run a claimed job from its prompt to the end of its record."""
        try:
            await self._store(claim, await self._run_graph(claim))
        except Revoked:
            await self._fail_expired(claim)
        except (QueueFull, NotReady) as error:
            await self._release(claim, error)
        except ServingError as error:
            await self._fail(claim, Outcome(error.code, error.message))
        except Exception:
            logger.exception(f"Job {claim.job.id} failed.")
            await self._fail(claim, Outcome(ServingError.code, "internal error; the server's log has the details"))

    async def _run_graph(self, claim: Claim) -> FinishedRequest:
        """Run the graph, and count each start of its denoise."""
        params = GenerationParams.model_construct(**claim.job.params)  # stored under the rules of that time
        async with aclosing(self._graph.run(params, claim.job.model, reference=self._reference(claim.job))) as events:
            async for event in events:
                if isinstance(event, FinishedRequest):
                    return event
                step = event["step"] if event["stage"] == DENOISER else claim.job.steps
                claim.progress = ClaimProgress(event["stage"], step)
                if claim.progress == ClaimProgress(DENOISER, 0):
                    await self._start(claim)
                elif event["stage"] != DENOISER:
                    self._in_background(self._heartbeat)  # the denoiser is free, which other claims depend on
        raise RuntimeError("the graph ended without a result")

    def _reference(self, job: Job) -> Reference | None:
        """Return what the job starts from, which is read when a stage needs it."""
        if job.input_reference is None:
            return None
        stored = job.input_reference
        before = stored.frames if stored.continued else 0
        return Reference(stored.kind, lambda: _reached(partial(self.files.read_input, job)), before)

    async def _start(self, claim: Claim) -> None:
        started = await _persist(lambda: self._table.start(claim.owner))
        if started is None:
            raise Revoked
        claim.attempts = started.attempts
        self._metrics.started(started)
        _log("started", claim, attempt=started.attempts, waited_s=round(started.waited_s, 3))
        # The record of the job before this one is about to say that it is denoised; until then it counts as denoising.
        asyncio.get_running_loop().call_later(NOTIFY_DELAY_S, self._in_background, self._claim_more)

    async def _store(self, claim: Claim, finished: FinishedRequest) -> None:
        """Store the files, then the record that names them: the files of a record always exist."""
        claim.progress = ClaimProgress(STORING, claim.job.steps)
        start = time.perf_counter()
        artifacts = []
        for artifact in finished.artifacts:
            artifacts.append(StoredArtifact.of(artifact, f"{self._folder}/{claim.owner}"))
            await _reached(partial(self._media.write, artifacts[-1].file, artifact.data))
        durations = finished.record["stage_durations"] | {STORING: round(time.perf_counter() - start, 3)}
        claim.ending = True
        if not await _persist(lambda: self._table.complete(claim.job, artifacts, durations)):
            with suppress(MediaUnavailable):  # the sweep of files without a record will remove them
                await self._media.remove(*(artifact.file for artifact in artifacts))
            raise Revoked
        self._metrics.completed(claim.job, durations, sum(len(artifact.data) for artifact in finished.artifacts))

    async def _release(self, claim: Claim, error: ServingError) -> None:
        """Free the job for another claim, unless it has started as often as it may."""
        if claim.attempts >= self._settings.max_attempts:
            return await self._fail(claim, Outcome(error.code, error.message))
        claim.ending = True
        if not await _persist(lambda: self._table.release(claim.owner, RELEASE_DELAY_S)):
            return self._stopped(claim)
        self._metrics.retried()
        _log("released", claim, reason=error.code)

    async def _fail(self, claim: Claim, outcome: Outcome) -> None:
        claim.ending = True
        self._ended(claim, await _persist(lambda: self._table.fail(claim.owner, outcome)))

    async def _fail_expired(self, claim: Claim) -> None:
        """Record why the job was taken from this runner, if it was not deleted or claimed by another one."""
        claim.ending = True  # a heartbeat must not cancel this: the job would be counted twice
        failed = await _persist(lambda: self._table.fail_expired(claim.owner))
        if failed:
            self._metrics.revoked()
        self._ended(claim, failed)

    def _ended(self, claim: Claim, failed: Sequence[FailedJob]) -> None:
        """Count a job that this runner failed, or that was deleted or claimed by another runner."""
        if failed:
            self._metrics.ended.failed(failed)
        else:
            self._stopped(claim)

    def _stopped(self, claim: Claim) -> None:
        self._metrics.revoked()
        _log("stopped", claim)

    async def _heartbeat(self) -> None:
        """Write progress, renew the leases, and stop the work on jobs that were cancelled, deleted or lost."""
        if not (claims := list(self._claims.values())):
            return
        owners = [claim.owner for claim in claims]
        oldest = time.monotonic() - self._settings.lease_s / LEASE_PART
        due = [claim for claim in claims if claim.progress != claim.written or claim.written_at < oldest]
        progress = {claim.owner: claim.progress for claim in due}
        owned = await (self._table.renew(progress, owners) if due else self._table.still_owned(owners))
        for claim in due:
            claim.written, claim.written_at = progress[claim.owner], time.monotonic()
        for claim in claims:
            if claim.owner not in owned and claim.work is not None and not claim.ending:
                claim.work.cancel()

    async def _reconcile(self) -> None:
        """Find jobs that no runner works on: their runner died, or a notification was lost."""
        self._metrics.ended.failed(await self._table.fail_expired())
        self._metrics.queued(await self._table.queued())
        await self._claim_more()

    async def _claim_more(self) -> None:
        """Notify the runners if a claim would get a job: the query costs a fraction of a request."""
        if await self._table.may_claim():
            self._notify()

    def _in_background(self, action: Callable[[], Awaitable[None]]) -> None:
        """Run a part of the upkeep now, without waiting for it."""
        task = asyncio.ensure_future(_logged(action))
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    def _notify(self) -> None:
        """Ask any runner to claim a job. A runner without a free slot does not: each free one does so for itself."""
        if len(self._claims) < SLOTS:
            self._notifications()

    def _send_notification(self) -> None:
        if self._runners is not None:
            self._runners.work.remote()
        elif not self._connecting:
            self._connecting = True
            self._in_background(self._connect)

    async def _connect(self) -> None:
        """Get this deployment's handle, which blocks while Serve's controller is away, and notify."""
        try:
            app = serve.get_replica_context().app_name
            self._runners = await asyncio.to_thread(serve.get_deployment_handle, type(self).__name__, app)
            self._runners.work.remote()
        finally:
            self._connecting = False


async def _persist(write: Callable[[], Awaitable[T]]) -> T:
    """Return the result of a write, repeated until the database is available."""
    while True:
        try:
            return await write()
        except DatabaseUnavailable:
            logger.warning("The job table cannot be reached; retrying in %s s.", DATABASE_WAIT_S, exc_info=True)
            await asyncio.sleep(DATABASE_WAIT_S)


async def _reached(action: Callable[[], Awaitable[T]]) -> T:
    """Return the result of an action on the media store, however often it refuses: the job's deadline ends this."""
    for wait_s in chain(STORE_WAITS_S, repeat(STORE_WAITS_S[-1])):
        try:
            return await action()
        except MediaUnavailable:
            logger.warning(f"The media store does not answer; retrying in {wait_s} s.", exc_info=True)
            await asyncio.sleep(wait_s)
    raise AssertionError("the last wait repeats")


async def _forever(action: Callable[[], Awaitable[None]], period_s: float) -> None:
    while True:
        await asyncio.sleep(period_s)
        await _logged(action)


async def _logged(action: Callable[[], Awaitable[None]]) -> None:
    try:
        await action()
    except Exception:  # the next period retries it
        logger.warning("Upkeep of the jobs failed.", exc_info=True)


def _log(event: str, claim: Claim, **fields: Any) -> None:
    log_job(event, claim.job.id, claim.job.request_id, **fields)
