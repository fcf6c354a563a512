"""Videos as clients see them: jobs in the table, files in the media store."""

import re
import time
from collections.abc import AsyncGenerator, Collection, Sequence
from contextlib import aclosing, suppress
from functools import partial
from typing import NamedTuple

from cosmos3_models import GenerationParams
from serve.errors import Conflict, InvalidRequest, MediaUnavailable, NotFound, QueueFull
from serve.estimates.cost import Cost
from serve.estimates.direct_requests import DirectRequests
from serve.estimates.observed_jobs import ActiveJob
from serve.estimates.schedule import Estimate, Rates, Schedule
from serve.graph.artifacts import ArtifactName
from serve.graph.batching import Batches
from serve.inputs.inspection import CheckedUpload
from serve.inputs.reference import FIELD
from serve.inputs.uploads import Receiver, Upload
from serve.jobs.files import JobFiles
from serve.jobs.job import Caller, InputGone, Job, JobSettings, NewJob
from serve.jobs.media_store import Content, MediaStore
from serve.jobs.metrics import EndedJobs
from serve.jobs.records import NumberedEvent, events_of, record_of
from serve.jobs.table import JobTable
from serve.jobs.wanted import Wanted
from serve.jobs.watcher import JobState, Watcher
from serve.schema import ListQuery, Video, VideoDeleted, VideoList

VIDEO_ID = re.compile(r"video_[0-9a-f]{32}")
ID_WITH_ORDER = re.compile(r"video_(0000[0-9a-f]{8})[0-9a-f]{20}")  # ids of older releases contain no order
IDEMPOTENCY_KEY = r"^[ -~]{1,255}$"
WATCH_PERIOD_S = 0.25
RATES_PERIOD_S = 2.0  # between two reads of what completed jobs took
NEW_JOB = -1  # the number of a job that is not stored


class Snapshot(NamedTuple):
    """The active jobs at one moment, and when they are expected to end."""

    active: Sequence[ActiveJob]
    schedule: Schedule


class Videos:
    """The operations on stored videos. Any number of replicas may have one.

    Args:
        settings: of the job table.
        media: where the files are.
        model: whose jobs are submitted and estimated.
        folder: of this database in the media store.

    Attributes:
        table: the job table.
        direct: requests of this process that are not in the table but take its denoisers' time.
    """

    def __init__(self, settings: JobSettings, media: MediaStore, model: str, folder: str) -> None:
        self.table = JobTable(settings, model)
        self.direct = DirectRequests()
        self._media = media
        self._files = JobFiles(self.table, media, folder)
        self._model = model
        self._rates = Rates([])
        self._rates_end = 0.0
        self._ended = EndedJobs()
        self._snapshots: Batches[None, Snapshot] = Batches(self._read_snapshot)
        self._watcher = Watcher(self._states, WATCH_PERIOD_S)

    async def submit(self, wanted: Wanted, caller: Caller) -> Video:
        """Store a job and return its record.

        Args:
            caller: the same idempotency key and request return the job stored before.

        Raises:
            QueueFull: with the time after which a place is expected to be free.
            InvalidRequest: the idempotency key is empty, too long or not in ASCII.
            Conflict: the idempotency key belongs to another request.
        """
        key = caller.idempotency_key
        if key is not None and not re.fullmatch(IDEMPOTENCY_KEY, key):
            message = f"Idempotency-Key: got {key[:80]!r}, expected 1 to 255 printable ASCII characters"
            raise InvalidRequest(message, "Idempotency-Key")
        new = wanted.job(self._model, caller)
        job = await (self.table.submit(new) if wanted.reference is None else self._submit_with_input(new, wanted))
        if job is None:
            wait_s = (await self._snapshots(None)).schedule.retry_after_s
            raise QueueFull("as many videos wait as this server takes; try again later", retry_after_s=wait_s)
        if not _same_request(job, new, wanted.request.given.get("seed")):
            raise Conflict("Idempotency-Key: got a key of another request, expected a new key for new fields")
        return await self._record(job)

    async def _submit_with_input(self, new: NewJob, wanted: Wanted) -> Job | None:
        """Store a job after the file that it starts from: the file of a record always exists."""
        while True:
            file, shared = await self._files.input_of(wanted.upload)
            starting = new._replace(input_reference=wanted.stored_input(file), shares_input=shared)
            try:
                job = await self.table.submit(starting)
            except InputGone:
                continue
            if not shared and (job is None or job.input_reference != starting.input_reference):
                with suppress(MediaUnavailable):  # no record names the new file
                    await self._media.remove(file)
            return job

    async def start(self, video_id: str) -> Job:
        """Return the job of a finished video, or image, from which another video can start.

        Raises:
            InvalidRequest: there is none.
        """
        job = await self._known(video_id)
        if job is None or job.main is None:
            got = f"a video that is {job.status}" if job else repr(video_id[:80])
            why = "there are no frames to start from"
            raise InvalidRequest(f"{FIELD}: got {got}, expected a finished video of this server, because {why}", FIELD)
        return job

    async def finished(self, video_id: str) -> Job:
        """Return the job of a finished video.

        Raises:
            InvalidRequest: it has not completed.
        """
        job = await self._job(video_id)
        if job.main is None:
            raise InvalidRequest(f"video_id: got a video that is {job.status}, expected a finished one", "video_id")
        return job

    async def copy(self, video_id: str, receiver: Receiver) -> Upload:
        """Copy a finished video, or image, into a file.

        Raises:
            InvalidRequest: there is none.
        """
        return await self._files.copy((await self.start(video_id)).files[0], receiver)

    async def input_of(self, job: Job, receiver: Receiver) -> Upload | None:
        """Copy the picture or clip that a job starts from into a file; None if there is none."""
        if job.input_reference is None:
            return None
        upload = await self._files.copy(job.input_reference.file, receiver)
        if upload.sha256 != job.input_sha256:
            return upload
        return CheckedUpload(upload.path, upload.sha256, upload.size, job.input_reference.media)

    async def estimate(self, cost: Cost, steps: int, upsampling: bool = False) -> Estimate:
        """Return the place in the queue and the time to completion of a job that arrived now.

        Args:
            upsampling: its prompt must be rewritten before it can start.
        """
        active = (await self._snapshots(None)).active
        new = ActiveJob(NEW_JOB, "queued", None, 0, steps, cost, 0.0, upsampling_pending=upsampling)
        return Schedule(self._rates, [*active, new], self.direct.active()).estimate(NEW_JOB)

    async def retrieve(self, video_id: str) -> Video:
        """Return the record of a job.

        Raises:
            NotFound: there is no such job. All methods that take an id raise it.
        """
        return await self._record(await self._job(video_id))

    async def list(self, query: ListQuery) -> VideoList:
        """Return a page of records in order of arrival."""
        start = None if query.after is None else await self._place(query.after)
        jobs = await self.table.page(start, query.limit + 1, query.order == "desc", query)
        schedule = await self._schedule_of(jobs)
        page = [record_of(job, schedule) for job in jobs[: query.limit]]
        ends = (page[0].id, page[-1].id) if page else (None, None)
        return VideoList(data=page, first_id=ends[0], last_id=ends[1], has_more=len(jobs) > query.limit)

    async def delete(self, video_id: str) -> VideoDeleted:
        """Delete a video and its files. A running job stops before its next step."""
        deleted = await self.table.delete(video_id) if VIDEO_ID.fullmatch(video_id) else None
        if deleted is None:
            raise _unknown(video_id)
        self._ended.deleted(deleted.job)
        if deleted.files:
            with suppress(MediaUnavailable):  # the sweep of files without a record will remove them
                await self._media.remove(*deleted.files)
        return VideoDeleted(id=video_id)

    async def cancel(self, video_id: str) -> Video:
        """Stop a job and fail it as cancelled. One that has ended stays as it is."""
        await self._job(video_id)
        self._ended.failed(await self.table.cancel(video_id))
        return await self.retrieve(video_id)

    async def content(self, video_id: str, variant: ArtifactName | None = None) -> Content:
        """Return one of a job's artifacts, by default the main one, to be read from the media store.

        Raises:
            NotFound: the job has not made it, or not yet, or its file is gone.
        """
        job = await self._job(video_id)
        artifact = job.artifact(variant) if variant else job.main
        if artifact is None and job.main is None:
            raise NotFound(f"the video has no {variant or 'content'}: it is {job.status}", "video_id")
        if artifact is None:
            raise NotFound(f"this video has no {variant}", "variant")
        size = await self._media.size(artifact.file)
        if size is None:
            raise NotFound(f"the {artifact.name} of this video is gone", "video_id")
        return Content(
            size=size,
            media_type=artifact.media_type,
            filename=job.id + artifact.suffix,
            etag=artifact.file,  # no other run writes a file of this name
            modified=job.completed_at or job.created_at,
            read=partial(self._media.read, artifact.file),
        )

    async def events(self, video_id: str, last_event: int | None) -> AsyncGenerator[NumberedEvent, None]:
        """Yield numbered events after ``last_event``: every step, then the end.

        They follow from the job's row alone, so a client that reconnects to any replica misses none.
        """
        last, place = -1 if last_event is None else last_event, None
        async with aclosing(self._watcher.follow(video_id)) as states:
            async for state in states:
                ended = state.job if isinstance(state.job, Job) and state.job.ended else None
                for number, event in events_of(state, await self._record(ended) if ended else None):
                    now = (event["queue_position"], event["stage"]) if event["type"] == "queued" else None
                    if number > last or (number == last and now != place):
                        last, place = number, now
                        yield number, event
                if ended:
                    return
        yield last + 1, {"type": "deleted"}

    async def _place(self, video_id: str) -> int:
        """Return the video's place in order of arrival; its id contains it, for a video whose row is gone."""
        try:
            return (await self._job(video_id)).seq
        except NotFound:
            if not (found := ID_WITH_ORDER.fullmatch(video_id)):
                raise
            return int(found[1], 16)

    async def _job(self, video_id: str) -> Job:
        job = await self._known(video_id)
        if job is None:
            raise _unknown(video_id)
        return job

    async def _known(self, video_id: str) -> Job | None:
        """Return the job with this id, if there is one; only valid ids reach the table."""
        return await self.table.get(video_id) if VIDEO_ID.fullmatch(video_id) else None

    async def _record(self, job: Job) -> Video:
        return record_of(job, await self._schedule_of([job]))

    async def _schedule_of(self, jobs: Sequence[Job]) -> Schedule:
        """Return what the estimates of these jobs need: nothing, once all have ended."""
        return Schedule(self._rates, []) if all(job.ended for job in jobs) else (await self._snapshots(None)).schedule

    async def _read_snapshot(self, readers: Sequence[None]) -> Sequence[Snapshot]:
        """Read the active jobs once for all responses that need them now."""
        if self._rates.empty or time.monotonic() > self._rates_end:
            self._rates = Rates(await self.table.finished())
            self._rates_end = time.monotonic() + RATES_PERIOD_S
        active = await self.table.active()
        return [Snapshot(active, Schedule(self._rates, active, self.direct.active()))] * len(readers)

    async def _states(self, video_ids: Collection[str]) -> dict[str, JobState]:
        """Return the states of those of the jobs that are in the table."""
        active, schedule = await self._snapshots(None)
        jobs: dict[str, ActiveJob | Job] = {job.id: job for job in active if job.id in video_ids}
        if others := [video_id for video_id in video_ids if video_id not in jobs]:
            jobs |= {job.id: job for job in await self.table.get_all(others)}
        return {video_id: JobState(job, schedule.estimate(job.seq)) for video_id, job in jobs.items()}


def _same_request(job: Job, new: NewJob, seed: int | None) -> bool:
    if job.fingerprint is not None:
        return job.fingerprint == new.fingerprint
    # A row of version 1: an absent seed had a default, and newer fields are absent.
    stored = GenerationParams.model_construct(**job.params).model_dump()
    return stored == new.params | ({"seed": job.params["seed"]} if seed is None else {})


def _unknown(video_id: str) -> NotFound:
    return NotFound(f"video_id: got {video_id[:80]!r}, expected the id of a stored video", "video_id")
