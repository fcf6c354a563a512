"""A streaming call whose items stay object references, so that an item can be passed on without being loaded.

Ray returns the references only by a private method, which is used here and nowhere else.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

from ray import ObjectRef
from ray.serve.handle import DeploymentResponseGenerator

from serve import tracing

START_S = 0.2
"""A replica starts a call well within this time after it was sent."""


class StreamingCall:
    """A call of a generator method that can be cancelled at any moment.

    Ray may lose a cancellation that reaches a replica while it starts the call (ray issue 52628): the generator then
    runs to its end and nothing reads it. So ``cancel`` first waits a moment for a call that may be about to start. The
    call has a context of its own, because Serve would cancel it at any moment with the request that made it.

    Args:
        method: ``remote`` of a streaming handle's method.
        args: the arguments of the method.
    """

    def __init__(self, method: Callable[..., DeploymentResponseGenerator[Any]], *args: Any) -> None:
        self._response = tracing.own_context().run(method, *args)
        self._generator = asyncio.ensure_future(self._response._to_object_ref_gen())
        self._generator.add_done_callback(_retrieve_error)

    async def references(self) -> AsyncIterator[ObjectRef]:
        """Yield the references of the items, each as soon as it exists."""
        async for reference in await asyncio.shield(self._generator):
            yield reference

    async def started(self, within_s: float) -> bool:
        """Tell whether a replica takes up the call within this time. Errors are left to ``references``."""
        started, _ = await asyncio.wait([self._generator], timeout=within_s)
        return bool(started)

    def cancel(self) -> None:
        """Cancel the call, whether it waits or runs. Returns before that has happened."""
        cancelling = asyncio.create_task(self._cancel())
        _cancelling.add(cancelling)
        cancelling.add_done_callback(_cancelling.discard)

    async def _cancel(self) -> None:
        await asyncio.wait([self._generator], timeout=START_S)
        self._response.cancel()


_cancelling: set[asyncio.Task[None]] = set()  # the event loop holds only weak references of its tasks


def _retrieve_error(generator: asyncio.Future[Any]) -> None:
    """Keep asyncio from logging the error of a cancelled call as unretrieved."""
    if not generator.cancelled():
        generator.exception()
