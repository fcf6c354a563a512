"""The deployment that makes videos of stored jobs, each inside a Serve request.

So Serve sees the work: a replica drains before it stops, and autoscaling can count it.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing, suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from ray import serve

from cosmos3_models import GenerationParams
from serve import tracing
from serve.errors import MediaUnavailable, NotReady, QueueFull, ServingError
from serve.graph.artifacts import PREVIEW, FinishedRequest
from serve.graph.batching import Coalesced
from serve.graph.graph import Graph, Reference, Stages
from serve.graph.revision import Reviser, Revision
from serve.graph.stage_names import DENOISER, PROMPT_UPSAMPLER, STORING
from serve.jobs.claim import Claim, Revoked
from serve.jobs.files import JobFiles
from serve.jobs.job import ClaimProgress, FailedJob, Job, JobSettings, Outcome, StoredArtifact
from serve.jobs.media_store import MediaStore
from serve.jobs.metrics import JobMetrics, log_job
from serve.jobs.migrations import prepare
from serve.jobs.retries import forever, logged, persisted, reached
from serve.jobs.table import JobTable
from serve.jobs.webhooks.outbox import Outbox
from serve.schema import Preview

if TYPE_CHECKING:
    from serve.jobs.webhooks.deliveries import Deliveries

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

UPSAMPLING = ClaimProgress(PROMPT_UPSAMPLER)


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
        self._reviser = Reviser(stages.prompt_upsampler, self._graph.check)
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
        self._upkeep = [loop.create_task(forever(action, period_s)) for action, period_s in upkeep.items()]
        self._deliveries = _deliveries(self._table.outbox, settings)
        if self._deliveries is not None:
            self._upkeep.append(loop.create_task(self._deliveries.run()))

    async def work(self) -> None:
        """Claim a free job and run it to its end, or rewrite its prompt; return at once if there is none.

        Raises:
            DatabaseUnavailable: no job could be claimed.
        """
        job = None if self._draining else await self._table.claim()
        if job is None or job.owner is None:
            return
        claim = self._claims[job.owner] = Claim(job, job.owner, preview=job.artifact(PREVIEW))
        claim.work = asyncio.create_task(self._revise(claim) if job.upsampling_pending else self._make(claim))
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
        if self._deliveries is not None and job.webhook_url is not None:
            await self._deliveries.send_first(job.seq)  # here, so that a replica that drains does not stop before it

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
        if self._deliveries is not None:
            await self._deliveries.close()
        await self._table.close()

    async def _make(self, claim: Claim) -> None:
        """Run a claimed job from its prompt to the end of its record."""
        try:
            with claim.traced():
                finished = await self._run_graph(claim)
                with tracing.span(STORING):
                    await self._store(claim, finished)
        except Exception as error:
            await self._failed(claim, error)

    async def _revise(self, claim: Claim) -> None:
        """Rewrite the prompt of a claimed job and free the job: it waits for the denoisers in its order of arrival."""
        claim.progress = claim.written = UPSAMPLING
        try:
            with claim.traced(PROMPT_UPSAMPLER):
                revision = await self._reviser.revise(_params(claim.job), self._reference(claim.job))
        except Exception as error:
            return await self._failed(claim, error)
        claim.ending = True
        if not await persisted(lambda: self._table.revise(claim.owner, revision)):
            await self._fail_expired(claim)

    async def _failed(self, claim: Claim, error: Exception) -> None:
        """Free or fail a job, by its error."""
        match error:
            case Revoked():
                await self._fail_expired(claim)
            case QueueFull() | NotReady():
                await self._release(claim, error)
            case ServingError():
                await self._fail(claim, Outcome(error.code, error.message))
            case _:
                logger.error(f"Job {claim.job.id} failed.", exc_info=error)
                await self._fail(claim, Outcome(ServingError.code, "internal error; the server's log has the details"))

    async def _run_graph(self, claim: Claim) -> FinishedRequest:
        """Run the graph, and count each start of its denoise."""
        params = Revision(claim.job.revised_prompt).of(_params(claim.job))
        async with aclosing(self._graph.run(params, claim.job.model, reference=self._reference(claim.job))) as events:
            async for event in events:
                if isinstance(event, FinishedRequest):
                    return event
                if event["type"] == "preview":
                    self._in_background(partial(self._show, claim, event))
                    continue
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
        return Reference(stored.kind, lambda: reached(partial(self.files.read_input, job)), before)

    async def _start(self, claim: Claim) -> None:
        started = await persisted(lambda: self._table.start(claim.owner))
        if started is None:
            raise Revoked
        claim.attempts = started.attempts
        self._metrics.started(started)
        _log("started", claim, attempt=started.attempts, waited_s=round(started.waited_s, 3))
        # The record of the job before this one is about to say that it is denoised; until then it counts as denoising.
        asyncio.get_running_loop().call_later(NOTIFY_DELAY_S, self._in_background, self._claim_more)

    async def _show(self, claim: Claim, event: Preview) -> None:
        """Store a preview in place of the one before it. If it cannot be stored, the next one may."""
        async with claim.showing:
            if claim.ending:
                return
            name, jpeg = f"{self._folder}/{claim.owner}", event["preview"]
            preview = StoredArtifact.of_preview(jpeg, name, event["step"])
            await self._media.write(preview.file, jpeg)
            now = claim.progress
            preview = preview._replace(shown_at=now.step)
            outdated: StoredArtifact | None = preview
            if await self._table.show(claim.owner, preview, now):
                outdated, claim.preview, claim.written = claim.preview, preview, now
            if outdated is not None:
                await self._media.remove(outdated.file)

    async def _store(self, claim: Claim, finished: FinishedRequest) -> None:
        """Store the files, then the record that names them: the files of a record always exist."""
        claim.progress = ClaimProgress(STORING, claim.job.steps)
        start = time.perf_counter()
        artifacts = []
        for artifact in finished.artifacts:
            artifacts.append(StoredArtifact.of(artifact, f"{self._folder}/{claim.owner}"))
            await reached(partial(self._media.write, artifacts[-1].file, artifact.data))
        async with claim.showing:  # or the record would list a preview that is about to be replaced
            claim.ending = True
        listed = artifacts if claim.preview is None else [*artifacts, claim.preview]
        durations = (claim.job.stage_durations or {}) | finished.record["stage_durations"]
        durations[STORING] = round(time.perf_counter() - start, 3)
        if not await persisted(lambda: self._table.complete(claim.job, listed, durations)):
            with suppress(MediaUnavailable):  # the sweep of files without a record will remove them
                await self._media.remove(*(artifact.file for artifact in artifacts))
            raise Revoked
        self._metrics.completed(claim.job, durations, sum(len(artifact.data) for artifact in finished.artifacts))

    async def _release(self, claim: Claim, error: ServingError) -> None:
        """Free the job for another claim, unless it has started as often as it may."""
        if claim.attempts >= self._settings.max_attempts:
            return await self._fail(claim, Outcome(error.code, error.message))
        claim.ending = True
        if not await persisted(lambda: self._table.release(claim.owner, RELEASE_DELAY_S)):
            return self._stopped(claim)
        self._metrics.retried()
        _log("released", claim, reason=error.code)

    async def _fail(self, claim: Claim, outcome: Outcome) -> None:
        claim.ending = True
        self._ended(claim, await persisted(lambda: self._table.fail(claim.owner, outcome)))

    async def _fail_expired(self, claim: Claim) -> None:
        """Record why the job was taken from this runner, if it was not deleted or claimed by another one."""
        claim.ending = True  # a heartbeat must not cancel this: the job would be counted twice
        failed = await persisted(lambda: self._table.fail_expired(claim.owner))
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
        failed = await self._table.fail_expired()
        self._metrics.ended.failed(failed)
        if failed and self._deliveries is not None:
            self._deliveries.look()
        self._metrics.queued(await self._table.queued())
        await self._claim_more()

    async def _claim_more(self) -> None:
        """Notify the runners if a claim would get a job: the query costs a fraction of a request."""
        if await self._table.may_claim():
            self._notify()

    def _in_background(self, action: Callable[[], Awaitable[None]]) -> None:
        """Run a part of the upkeep now, without waiting for it."""
        task = asyncio.ensure_future(logged(action))
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


def _deliveries(outbox: Outbox, settings: JobSettings) -> "Deliveries | None":
    """Return what sends events; None if no target is allowed."""
    if not settings.webhooks.targets:
        return None
    from serve.jobs.webhooks.deliveries import Deliveries  # here, because only servers with webhooks need a client

    return Deliveries(outbox, settings.webhooks)


def _params(job: Job) -> GenerationParams:
    return GenerationParams.model_construct(**job.params)  # stored under the rules of that time


def _log(event: str, claim: Claim, **fields: Any) -> None:
    log_job(event, claim.job.id, claim.job.request_id, **fields)
