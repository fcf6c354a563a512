"""A streaming call whose items stay object references, so that an item can be handed on without being fetched.

Ray has the references behind an underscored name; it is used here and nowhere else.
"""

import asyncio
import contextvars
from collections.abc import AsyncIterator, Callable
from typing import Any

from ray import ObjectRef
from ray.serve.handle import DeploymentResponseGenerator

START_S = 0.2
"""A replica takes up a call that was sent to it well within this time."""


class StreamingCall:
    """A call of a generator method, and a way out of it that leaves nothing running.

    Ray may lose a cancellation that reaches a replica while it takes up the call (ray issue 52628): the generator then
    runs to its end and nobody reads it. So who leaves waits a moment for a call that may be on its way. Serve must not
    cancel it either when the request that made it goes away, hence a context of its own.

    Args:
        method: ``remote`` of a streaming handle's method.
        args: what the method gets.
    """

    def __init__(self, method: Callable[..., DeploymentResponseGenerator[Any]], *args: Any) -> None:
        self._response = contextvars.Context().run(method, *args)
        self._generator = asyncio.ensure_future(self._response._to_object_ref_gen())
        self._generator.add_done_callback(_seen)

    async def references(self) -> AsyncIterator[ObjectRef]:
        """The references of the items, each as soon as it exists."""
        async for reference in await asyncio.shield(self._generator):
            yield reference

    def leave(self) -> None:
        """Give up the place in the queue, or stop the replica. Returns before that has happened."""
        leaving = asyncio.create_task(self._leave())
        _leaving.add(leaving)
        leaving.add_done_callback(_leaving.discard)

    async def _leave(self) -> None:
        await asyncio.wait([self._generator], timeout=START_S)
        self._response.cancel()


_leaving: set[asyncio.Task[None]] = set()  # the event loop itself holds its tasks but weakly


def _seen(generator: asyncio.Future[Any]) -> None:
    """Tell asyncio that an error of a call that was left is no oversight."""
    if not generator.cancelled():
        generator.exception()
