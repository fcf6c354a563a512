"""The entry of the graph: the HTTP routes, and handle calls of other Ray jobs."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any

from fastapi import FastAPI
from ray import serve
from ray.serve.handle import DeploymentHandle

from serve.errors import NotReady
from serve.graph.artifacts import FinishedRequest
from serve.graph.batching import Coalesced
from serve.graph.callers import cancelled_with_caller
from serve.graph.graph import Graph, Stages
from serve.http import health
from serve.http.access import OPEN, Access
from serve.http.health import Look
from serve.http.query import read_query
from serve.http.routes import create_api
from serve.ingress.handle_errors import readable_errors
from serve.ingress.served_model import ModelSettings, ServedModel
from serve.jobs.job import JobSettings
from serve.jobs.media_store import MediaStore
from serve.jobs.migrations import prepare
from serve.jobs.runner import NOTIFY_PERIOD_S
from serve.jobs.videos import Videos
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
    """

    def __init__(
        self,
        stages: Stages,
        runner: DeploymentHandle[Any],
        model: ModelSettings,
        settings: JobSettings,
        media_url: str,
        access: Access = OPEN,
    ) -> None:
        self._graph = Graph(stages, settings.max_attempts)
        self._model = ServedModel(model, self._graph.budget)
        self._lease_s = settings.lease_s
        self._notify_runner = Coalesced(lambda: runner.work.remote(), NOTIFY_PERIOD_S)
        self._access = access
        self._draining = False
        self._looks = [Look("Serve's controller", self._unready_deployments), Look("database", self._unready_database)]
        prepare(settings.database_url)
        self.videos = Videos(settings, MediaStore(media_url), self._model.name)

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
        params = await self._model.params(request)
        events = self._graph.run(params, self._model.name, arrays)
        with self.videos.direct.counted(self._model.cost(params), params.num_inference_steps) as note:
            async with cancelled_with_caller(self._lease_s), aclosing(events):
                async for event in events:
                    if isinstance(event, FinishedRequest):
                        yield event.for_handle_caller(request.record(params))
                    else:
                        note(event)
                        yield event

    async def store(
        self, request: VideoRequest, idempotency_key: str | None = None, request_id: str | None = None
    ) -> Video:
        """Store a job and return its record at once; a runner makes the video.

        Args:
            idempotency_key: a second call with the same key and request returns the same job.
            request_id: stored with the job.

        Raises:
            ServingError: the request is invalid, or the queue is full.
        """
        self._check_open()
        params = await self._model.params(request)
        ids = await self._graph.check(params)
        cost = self._model.cost(params, [len(prompt) for prompt in (ids.positive, ids.negative) if prompt is not None])
        video = await self.videos.submit(request, params, cost, idempotency_key, request_id)
        self._notify_runner()
        return video

    async def estimated(self, request: VideoRequest) -> VideoEstimate:
        """How long a request would take if it came now; nothing is stored."""
        params = await self._model.params(request)
        estimate = await self.videos.estimate(self._model.cost(params), params.num_inference_steps)
        return VideoEstimate(
            eta_s=estimate.rounded_eta_s,
            queue_position=estimate.position,
            relative_work=round(self._model.relative_work(params), 3),
        )

    # Handle calls take and return plain values and raise Ray's own errors, so that the caller needs no package but Ray.

    async def generate(self, request: dict[str, Any], arrays: bool = False) -> FinishedVideo:
        """One finished video: the mp4, two JPEGs and the record; with ``arrays`` also the frames and the waveform."""
        with readable_errors():
            return await self.make(read_request(request), arrays)

    async def stream(self, request: dict[str, Any], arrays: bool = False) -> AsyncGenerator[Event, None]:
        """The same with a progress event after every step; the last event is the video."""
        with readable_errors():
            async with aclosing(self._events(read_request(request), arrays)) as events:
                async for event in events:
                    yield event

    async def submit(
        self, request: dict[str, Any], idempotency_key: str | None = None, request_id: str | None = None
    ) -> dict[str, Any]:
        """Store a job and return its record."""
        with readable_errors():
            return (await self.store(read_request(request), idempotency_key, request_id)).model_dump()

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
