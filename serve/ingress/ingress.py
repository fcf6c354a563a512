"""The entry of the graph: the HTTP routes, and handle calls of other Ray jobs."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any

from fastapi import FastAPI
from ray import serve
from ray.serve.handle import DeploymentHandle

from cosmos3_models import GenerationParams, InvalidInput
from cosmos3_models.references import ReferenceKind
from serve import tracing
from serve.errors import NotReady, invalid_input_refused
from serve.graph.artifacts import FinishedRequest
from serve.graph.batching import Coalesced
from serve.graph.callers import cancelled_with_caller
from serve.graph.graph import Graph, Reference, Stages
from serve.graph.revision import UPSAMPLING, Reviser, Revision, wants_revision
from serve.graph.stage_names import PROMPT_UPSAMPLER
from serve.guards.guard import GuardSettings, PromptGuard
from serve.http import health
from serve.http.access import OPEN, Access
from serve.http.health import Look
from serve.http.query import read_query
from serve.http.routes import create_api
from serve.ingress.derived_requests import extended, remixed
from serve.ingress.handle_errors import readable_errors
from serve.ingress.served_model import ModelSettings, ServedModel
from serve.inputs.inspection import CheckedReference, checked, require_clip
from serve.inputs.reference import StoredVideo, received
from serve.inputs.uploads import Receiver, Upload, UploadFolder
from serve.jobs.job import OF_ITS_OWN, Caller, JobSettings, Origin
from serve.jobs.media_store import MediaStore
from serve.jobs.migrations import prepare
from serve.jobs.runner import NOTIFY_PERIOD_S
from serve.jobs.videos import Videos
from serve.jobs.wanted import Wanted
from serve.jobs.webhooks.targets import FIELD as WEBHOOK
from serve.jobs.webhooks.targets import Targets, shown
from serve.schema import Event, FinishedVideo, ModelCard, Video, VideoEstimate, VideoRequest, read_request

RETRY_S = 5.0  # after a refusal by a server that is stopping


class Ingress:
    """Stateless: stores jobs, and drives the graph for clients that wait for their video.

    Args:
        stages: handles of the model stages.
        runner: handle of the job runner.
        model: the model that the stages serve.
        settings: of the job table.
        media_url: where the videos are stored.
        access: which clients may use the HTTP routes.
        guard: what refuses prompts; None: nothing does.
    """

    def __init__(
        self,
        stages: Stages,
        runner: DeploymentHandle[Any],
        model: ModelSettings,
        settings: JobSettings,
        media_url: str,
        access: Access = OPEN,
        guard: GuardSettings | None = None,
    ) -> None:
        self._guard = PromptGuard(guard)
        self._graph = Graph(stages, settings.max_attempts)
        self._reviser = Reviser(stages.prompt_upsampler, self._graph.check)
        self._model = ServedModel(model, self._graph.budget)
        self._lease_s = settings.lease_s
        self._targets = Targets(settings.webhooks.targets)
        self._notify_runner = Coalesced(lambda: runner.work.remote(), NOTIFY_PERIOD_S)
        self._access = access
        self._draining = False
        self._looks = [Look("Serve's controller", self._unready_deployments), Look("database", self._unready_database)]
        self.uploads = UploadFolder()
        folder = prepare(settings.database_url)
        self.videos = Videos(settings, MediaStore(media_url), self._model.name, folder)

    def __serve_build_asgi_app__(self) -> FastAPI:
        return create_api(self, self._access)

    async def make(self, request: VideoRequest, arrays: bool = False) -> FinishedVideo:
        """One finished video.

        Args:
            arrays: return the frames and the waveform as well.

        Raises:
            ServingError: the request is invalid, or a stage failed.
        """
        async with aclosing(self._events(request, arrays)) as events:
            async for event in events:
                if event["type"] == "video":
                    return event
        raise RuntimeError("the graph ended without a video")

    async def _events(self, request: VideoRequest, arrays: bool) -> AsyncGenerator[Event, None]:
        self._check_open()
        check_no_webhook(request)
        with self.uploads.receiving() as receiver:
            params, reference = await self._permitted(request, receiver)
            cost, asks = self._model.cost(params, kind=_kind_of(reference)), wants_revision(params)
            made = self._made(params, request.record(params), arrays, _as_graph_reads(reference))
            with self.videos.direct.counted(cost, params.num_inference_steps, asks) as note:
                async with cancelled_with_caller(self._lease_s), aclosing(made):
                    async for event in made:
                        if event["type"] == "progress":
                            note(event)
                        yield event

    async def _made(
        self, params: GenerationParams, record: dict[str, Any], arrays: bool, reference: Reference | None
    ) -> AsyncGenerator[Event, None]:
        """The events of one video, made of its prompt or of the caption in its place.

        Args:
            record: the request's fields of it.
        """
        revision = Revision()
        if wants_revision(params):
            yield UPSAMPLING
            with tracing.span(PROMPT_UPSAMPLER):
                revision = await self._reviser.revise(params, reference)
        events = self._graph.run(revision.of(params), self._model.name, arrays, reference)
        async with aclosing(events):
            async for event in events:
                if isinstance(event, FinishedRequest):
                    yield event.for_handle_caller(record | revision.added_to(event.record))
                else:
                    yield event

    async def _accepted(
        self, request: VideoRequest, receiver: Receiver, continues: bool = False
    ) -> tuple[GenerationParams, CheckedReference | None]:
        """The complete parameters of a request, and the picture or clip that it starts from.

        Raises:
            InvalidRequest: either of them is invalid, or no event may be sent to its ``webhook_url``.
        """
        if request.webhook_url is not None:
            with invalid_input_refused():
                self._targets.check(request.webhook_url)
        if request.input_reference is None:
            return await self._model.params(request), None
        with invalid_input_refused():
            reference = await checked(request.input_reference, self.videos.copy, receiver)
            if continues:
                require_clip(reference)
        return await self._model.params(request, reference.media, continues), reference

    async def _permitted(
        self, request: VideoRequest, receiver: Receiver, continues: bool = False
    ) -> tuple[GenerationParams, CheckedReference | None]:
        """The same of a request that is to be made: the guard permits its prompt.

        Raises:
            ServingError: as ``_accepted`` and ``PromptGuard.check``.
        """
        accepted = await self._accepted(request, receiver, continues)
        await self._guard.check(accepted[0].prompt)
        return accepted

    async def store(self, request: VideoRequest, caller: Caller, origin: Origin = OF_ITS_OWN) -> Video:
        """Store a job and return its record at once; a runner makes the video.

        Args:
            caller: a second call with the same idempotency key and request returns the same job.
            origin: the earlier video from which the request derives.

        Raises:
            ServingError: the request is invalid, or the queue is full.
        """
        self._check_open()
        with self.uploads.receiving() as receiver:
            params, reference = await self._permitted(request, receiver, origin.continues)
            ids = await self._graph.check(params)
            prompts = [len(prompt) for prompt in (ids.positive, ids.negative) if prompt is not None]
            cost = self._model.cost(params, prompts, _kind_of(reference))
            wanted = Wanted(request, params, cost, reference, origin)
            video = await self.videos.submit(wanted, caller)
        self._notify_runner()
        return video

    async def remix(self, video_id: str, request: VideoRequest, caller: Caller) -> Video:
        """Store a job like that of a finished video, but for the fields of ``request``.

        Raises:
            NotFound: there is no such video.
            ServingError: the video has not completed, or as ``store``.
        """
        source = await self.videos.finished(video_id)
        with self.uploads.receiving() as receiver:
            reference = await self.videos.input_of(source, receiver)
            with invalid_input_refused():
                wanted = remixed(source, request, reference)
            continues = source.continues and request.input_reference is None
            return await self.store(wanted, caller, Origin(video_id, continues))

    async def extend(self, clip: Upload | str, request: VideoRequest, caller: Caller) -> Video:
        """Store a job that continues a clip, or a finished video; its result begins with all frames of that.

        Args:
            clip: a file, or the id of a video.

        Raises:
            ServingError: as ``store``.
        """
        source = None if isinstance(clip, Upload) else await self.videos.start(clip)
        with invalid_input_refused():
            wanted = extended(source, request, StoredVideo(clip) if isinstance(clip, str) else clip)
        return await self.store(wanted, caller, Origin(continues=True))

    async def estimated(self, request: VideoRequest) -> VideoEstimate:
        """How long a request would take if it came now; nothing is stored."""
        with self.uploads.receiving() as receiver:
            params, reference = await self._accepted(request, receiver)
        kind = _kind_of(reference)
        cost, asks = self._model.cost(params, kind=kind), wants_revision(params)
        estimate = await self.videos.estimate(cost, params.num_inference_steps, asks)
        return VideoEstimate(
            eta_s=estimate.rounded_eta_s,
            queue_position=estimate.position,
            relative_work=round(self._model.relative_work(params, kind), 3),
        )

    # Handle calls take and return plain values and raise Ray's own errors, so that the caller needs no package but Ray.

    async def generate(self, request: dict[str, Any], arrays: bool = False) -> FinishedVideo:
        """One finished video: the mp4, two JPEGs and the record; with ``arrays`` also the frames and the waveform."""
        with readable_errors(), self.uploads.receiving() as receiver:
            return await self.make(await _read(request, receiver), arrays)

    async def stream(self, request: dict[str, Any], arrays: bool = False) -> AsyncGenerator[Event, None]:
        """The same with a progress event after every step; the last event is the video."""
        with readable_errors(), self.uploads.receiving() as receiver:
            async with aclosing(self._events(await _read(request, receiver), arrays)) as events:
                async for event in events:
                    yield event

    async def submit(
        self, request: dict[str, Any], idempotency_key: str | None = None, request_id: str | None = None
    ) -> dict[str, Any]:
        """Store a job and return its record."""
        with readable_errors(), self.uploads.receiving() as receiver:
            caller = Caller(idempotency_key, request_id)
            return (await self.store(await _read(request, receiver), caller)).model_dump()

    async def retrieve(self, video_id: str) -> dict[str, Any]:
        """The record of a job."""
        with readable_errors():
            return (await self.videos.retrieve(video_id)).model_dump()

    async def list(self, **query: Any) -> dict[str, Any]:
        """A page of records.

        Args:
            query: fields of ``ListQuery``.
        """
        with readable_errors():
            return (await self.videos.list(read_query(query))).model_dump()

    async def cancel(self, video_id: str) -> dict[str, Any]:
        """Stop making a video; its record stays, as failed."""
        with readable_errors():
            return (await self.videos.cancel(video_id)).model_dump()

    async def delete(self, video_id: str) -> dict[str, Any]:
        """Delete a video's record and files; a running denoise stops before the next step."""
        with readable_errors():
            return (await self.videos.delete(video_id)).model_dump()

    def model_cards(self) -> Sequence[ModelCard]:
        """The model's defaults and limits, once under each name."""
        return self._model.cards()

    async def unready_stages(self) -> Sequence[str]:
        """The deployments without a running replica, and the database if it does not answer; empty if all is ready."""
        return ["the server is stopping"] if self._draining else await health.unready(self._looks)

    def drain(self) -> int:
        """Refuse new videos from now on; the number that clients still wait for."""
        self._draining = True
        return len(self.videos.direct.active())

    def _check_open(self) -> None:
        if self._draining:
            raise NotReady("the server is stopping and takes no new requests; try again later", retry_after_s=RETRY_S)

    async def _unready_deployments(self) -> Sequence[str]:
        name = serve.get_replica_context().app_name
        application = (await asyncio.to_thread(serve.status)).applications.get(name)
        if application is None:
            return [name]
        return health.public(health.unready_deployments(application))

    async def _unready_database(self) -> Sequence[str]:
        await self.videos.table.queued()
        return []


def check_no_webhook(request: VideoRequest) -> None:
    """Refuse a ``webhook_url`` where the client waits for the video.

    Raises:
        InvalidRequest: the request has one.
    """
    if request.webhook_url is not None:
        with invalid_input_refused():
            why = "the response is the video, and events tell of the ends of jobs"
            raise InvalidInput(WEBHOOK, shown(request.webhook_url), "no such field here", why)


def _kind_of(reference: CheckedReference | None) -> ReferenceKind | None:
    """Whether a request starts from a picture or from a clip."""
    return None if reference is None else reference.media.kind


def _as_graph_reads(reference: CheckedReference | None) -> Reference | None:
    """The reference as the graph reads it: from its file, once a stage needs it."""
    if reference is None:
        return None
    path = reference.upload.path
    return Reference(reference.media.kind, lambda: asyncio.to_thread(path.read_bytes))


async def _read(request: dict[str, Any], receiver: Receiver) -> VideoRequest:
    """The request of a handle call; the bytes of its reference are in a file from now on."""
    with invalid_input_refused():
        return read_request(await received(request, receiver))
