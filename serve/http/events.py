"""The events of a job over HTTP, by FastAPI's server-sent events, which also keep silent connections alive."""

from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, contextmanager
from typing import Annotated

from fastapi import APIRouter, Depends, Header, Request
from fastapi.sse import EventSourceResponse, ServerSentEvent

from cosmos3_models.fields import Number
from serve.errors import QueueFull
from serve.http.answers import IS_HEAD
from serve.http.openapi import errors
from serve.jobs.videos import Videos

MAX_STREAMS = 192  # each open stream holds one of the ingress's slots (serve/app.py) until its job ends
RETRY_S = 5.0  # after a refusal because too many streams are open


class EventStreams:
    """Counts the open streams of events, which must leave room for all other requests."""

    def __init__(self) -> None:
        self._open = 0

    @contextmanager
    def one(self) -> Iterator[None]:
        """Count one stream while it is open.

        Raises:
            QueueFull: ``MAX_STREAMS`` streams are open.
        """
        if self._open >= MAX_STREAMS:
            message = f"{self._open} event streams are open, which is the maximum; try again"
            raise QueueFull(message, retry_after_s=RETRY_S)
        self._open += 1
        try:
            yield
        finally:
            self._open -= 1


def event_routes(videos: Videos) -> APIRouter:
    """The route of a job's events."""
    router, streams = APIRouter(), EventStreams()

    async def admitted(request: Request, video_id: str) -> AsyncIterator[None]:
        """Answer an unknown id, and one stream too many, with an error instead of a stream."""
        await videos.retrieve(video_id)
        if IS_HEAD in request.scope:
            yield
            return
        with streams.one():
            yield

    @router.get(
        "/videos/{video_id}/events",
        responses=errors(404, 429, 503),
        response_class=EventSourceResponse,
        dependencies=[Depends(admitted)],
    )
    async def events(
        request: Request,
        video_id: str,
        last_event_id: Annotated[int | None, Number, Header(description="id of the last received event")] = None,
    ) -> AsyncIterator[ServerSentEvent]:
        """Stream every step and then the end as server-sent events. Resumes after ``Last-Event-ID``."""
        if IS_HEAD in request.scope:
            return
        async with aclosing(videos.events(video_id, last_event_id)) as numbered_events:
            async for number, event in numbered_events:
                yield ServerSentEvent(data=event, id=str(number))

    return router
