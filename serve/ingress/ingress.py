"""The door of the graph: HTTP routes and handle calls for other Ray jobs."""

import asyncio
import contextvars
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any, NamedTuple

from fastapi import FastAPI
from ray import serve
from ray.serve.handle import DeploymentHandle

from cosmos3_models import GenerationParams, InvalidInput
from cosmos3_models.checkpoint.configs import require_sound
from cosmos3_models.checkpoint.folder import Checkpoint
from cosmos3_models.params import ApproximationPolicy, check_device, check_pixel_frames
from cosmos3_models.resources.budget import Budget
from serve.errors import NotReady, invalid_input_refused
from serve.estimates.schedule import cost_of, operations
from serve.graph.batching import Coalesced
from serve.graph.callers import cancelled_with_caller
from serve.graph.graph import Graph, Stages
from serve.http import health
from serve.http.access import OPEN, Access
from serve.http.health import Look
from serve.http.query import read_query
from serve.http.routes import create_api
from serve.ingress.handle_errors import readable_errors
from serve.jobs.job_schema import prepare
from serve.jobs.media_store import MediaStore
from serve.jobs.runner import NOTIFY_PERIOD_S
from serve.jobs.table import Cost, JobSettings
from serve.jobs.videos import Videos
from serve.schema import Event, FinishedVideo, ModelCard, Video, VideoEstimate, VideoRequest, read_request

BUDGET_WAIT_S = 2.0  # an idle denoiser answers in milliseconds
RETRY_S = 5.0  # after a refusal by a server that is stopping


class ServedModel(NamedTuple):
    """What requests are checked against.

    Attributes:
        checkpoint: the folder that the stages serve.
        names: what requests may call the model; the first stands in records.
        device: cpu or cuda, where the denoiser computes.
        approximation: what requests give up for speed unless they say otherwise, and what they may give up.
        max_pixel_frames: the largest height x width x frames that is accepted.
    """

    checkpoint: str
    names: tuple[str, ...]
    device: str
    approximation: ApproximationPolicy
    max_pixel_frames: int


class Ingress:
    """Stateless; checks requests, stores jobs, and drives the graph for those who wait.

    Args:
        stages: handles of the model stages.
        runner: handle of the job runner.
        model: what the stages serve; only its configs are read here.
        settings: of the job table.
        media_url: where the videos are kept.
        access: who may come in, and from where.
    """

    def __init__(
        self,
        stages: Stages,
        runner: DeploymentHandle[Any],
        model: ServedModel,
        settings: JobSettings,
        media_url: str,
        access: Access = OPEN,
    ) -> None:
        self._checkpoint = Checkpoint.open(model.checkpoint)
        self._defaults = model.approximation.over(self._checkpoint.defaults)
        self._model = model
        self._graph = Graph(stages, settings.max_attempts)
        self._budget: asyncio.Task[Budget | None] | None = None
        self._lease_s = settings.lease_s
        self._notify_runner = Coalesced(lambda: runner.work.remote(), NOTIFY_PERIOD_S)
        self._access = access
        self._draining = False
        self._looks = [Look("Serve's controller", self._unready_deployments), Look("database", self._unready_database)]
        prepare(settings.database_url)
        self.videos = Videos(settings, MediaStore(media_url), model.names[0])

    def __serve_build_asgi_app__(self) -> FastAPI:
        return create_api(self, self._access)

    async def make(self, request: VideoRequest | dict[str, Any], arrays: bool = False) -> FinishedVideo:
        """One finished video.

        Raises:
            ServingError: what the request got wrong, or what failed.
        """
        async with aclosing(self._events(request, arrays)) as events:
            async for event in events:
                if event["type"] == "video":
                    return event
        raise RuntimeError("the graph ended without a video")

    async def _events(self, request: VideoRequest | dict[str, Any], arrays: bool) -> AsyncGenerator[Event, None]:
        self._check_open()
        checked = _checked(request)
        params = await self._fitting_params(checked)
        cost = self._cost_without_text(params)
        events = self._graph.run(params, self._model.names[0], arrays)
        with self.videos.direct.counted(cost, params.num_inference_steps) as note:
            async with cancelled_with_caller(self._lease_s), aclosing(events):
                async for event in events:
                    note(event)
                    if event["type"] == "video":
                        event["record"] |= checked.record(params)
                    yield event

    async def store(
        self,
        request: VideoRequest | dict[str, Any],
        idempotency_key: str | None = None,
        request_id: str | None = None,
    ) -> Video:
        """Store a job and answer at once; a runner makes the video.

        Args:
            idempotency_key: the same key and request again give the same job.

        Raises:
            ServingError: what the request got wrong, or that the queue is full.
        """
        self._check_open()
        checked = _checked(request)
        params = await self._fitting_params(checked)
        ids = await self._graph.check(params)
        tokens = [len(prompt) for prompt in (ids.positive, ids.negative) if prompt is not None]
        cost = cost_of(self._checkpoint, self._model.device, params, tokens)
        video = await self.videos.submit(checked, params, cost, idempotency_key, request_id)
        self._notify_runner()
        return video

    async def estimated(self, request: VideoRequest) -> VideoEstimate:
        """How long a request would take if it came now; nothing is stored."""
        params = await self._fitting_params(request)
        cost = self._cost_without_text(params)
        usual = self._defaults.params(prompt=params.prompt)
        work = operations(self._cost_without_text(usual), usual.num_inference_steps)
        position, eta_s = await self.videos.estimate(cost, params.num_inference_steps)
        return VideoEstimate(
            eta_s=None if eta_s is None else round(eta_s, 1),
            queue_position=position,
            relative_work=round(operations(cost, params.num_inference_steps) / work, 3),
        )

    # Handle calls take and return plain values and raise Ray's own errors, so that the caller needs no more than Ray.

    async def generate(self, request: dict[str, Any], arrays: bool = False) -> FinishedVideo:
        """One finished video: mp4 bytes, JPEG thumbnail and record, and with ``arrays`` frames and waveform."""
        with readable_errors():
            return await self.make(request, arrays)

    async def stream(self, request: dict[str, Any], arrays: bool = False) -> AsyncGenerator[Event, None]:
        """The same, with a progress event for every step on the way; the video is the last event."""
        with readable_errors():
            async with aclosing(self._events(request, arrays)) as events:
                async for event in events:
                    yield event

    async def submit(
        self, request: dict[str, Any], idempotency_key: str | None = None, request_id: str | None = None
    ) -> dict[str, Any]:
        """Store a job; its record."""
        with readable_errors():
            return (await self.store(request, idempotency_key, request_id)).model_dump()

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
        """Stop making a video and keep its record, as failed."""
        with readable_errors():
            return (await self.videos.cancel(video_id)).model_dump()

    async def delete(self, video_id: str) -> dict[str, Any]:
        """Stop making a video, if it is being made, and delete its record and files."""
        with readable_errors():
            return (await self.videos.delete(video_id)).model_dump()

    def model_cards(self) -> Sequence[ModelCard]:
        """What is served: defaults and limits, once for each name."""
        return [self._model_card(name) for name in self._model.names]

    def _model_card(self, name: str) -> ModelCard:
        params, guide = self._defaults.params(prompt="-"), self._checkpoint.guide
        return {
            "id": name,
            "object": "model",
            "created": int(self._checkpoint.folder.stat().st_mtime),
            "owned_by": "cosmos3",
            "sound": self._checkpoint.sound is not None,
            "defaults": params.model_dump(exclude={"prompt", "seed"}),
            "max_pixel_frames": self._model.max_pixel_frames,
            "guide": None if guide is None else guide.model_dump(),
            "allowed_approximations": [*self._model.approximation.allowed],
        }

    async def unready_stages(self) -> Sequence[str]:
        """The deployments of the graph without a running replica, and the database if it does not answer."""
        return ["the server is stopping"] if self._draining else await health.unready(self._looks)

    def drain(self) -> int:
        """Refuse new videos from now on; how many are being made for clients that wait."""
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

    def _cost_without_text(self, params: GenerationParams) -> Cost:
        """Only the tokenizer knows how long the text is, and next to the media it is short."""
        passes = 1 if params.guidance_scale == 1 else 2
        return cost_of(self._checkpoint, self._model.device, params, (0,) * passes)

    async def _fitting_params(self, request: VideoRequest | dict[str, Any]) -> GenerationParams:
        """The request's parameters, refused here if no GPU of the denoisers can hold it."""
        params = self._params(request)
        if self._model.device == "cuda" and (budget := await self._known_budget()) is not None:
            with invalid_input_refused():
                budget.check(params)
        return params

    async def _known_budget(self) -> Budget | None:
        """What a denoiser has said of its GPU. While all are busy or away nothing is known; they check as well."""
        if self._budget is None or (self._budget.done() and self._budget.exception()):
            # In a context of its own: the request that asks first may end before the answer.
            self._budget = asyncio.create_task(self._graph.budget(), context=contextvars.Context())
        await asyncio.wait({self._budget}, timeout=BUDGET_WAIT_S)
        return self._budget.result() if self._budget.done() and not self._budget.exception() else None

    def _params(self, request: VideoRequest | dict[str, Any]) -> GenerationParams:
        checked = _checked(request)
        with invalid_input_refused():
            if checked.model not in (None, *self._model.names):
                served = f"{' or '.join(map(repr, self._model.names))} or no model"
                raise InvalidInput("model", checked.model, served, "this is the model that is served here")
            params = checked.params(self._defaults)
            check_pixel_frames(params, self._model.max_pixel_frames)
            check_device(params, self._model.device)
            self._model.approximation.check(params)
            if params.generate_sound:
                require_sound(self._checkpoint.sound)
        return params


def _checked(request: VideoRequest | dict[str, Any]) -> VideoRequest:
    with invalid_input_refused():
        return read_request(request)
