"""Calls together: in batches, at the same time, and once for many that ask for one."""

import asyncio
import contextvars
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")


class Batches(Generic[T, R]):
    """Handles items that arrive during the previous batch as one batch.

    A batch starts after all of its items have arrived. It runs in a context of its own, so that the end of one request
    does not cancel the others.

    Args:
        handle: returns a result, or the exception to raise, for each item in order. What it raises is raised for all.
    """

    def __init__(self, handle: Callable[[list[T]], Awaitable[Sequence[R | Exception]]]) -> None:
        self._handle = handle
        self._waiting: list[tuple[T, asyncio.Future[R]]] = []
        self._work: asyncio.Task[None] | None = None

    async def __call__(self, item: T) -> R:
        """Return the result of ``item``."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[R] = loop.create_future()
        self._waiting.append((item, future))
        if self._work is None or self._work.done():
            self._work = loop.create_task(self._handle_all(), context=contextvars.Context())
        return await future

    async def _handle_all(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting, []
            if batch := [(item, future) for item, future in batch if not future.done()]:
                await self._handle_batch(batch)

    async def _handle_batch(self, batch: Sequence[tuple[T, asyncio.Future[R]]]) -> None:
        results: Sequence[R | Exception]
        try:
            results = await self._handle([item for item, _ in batch])
        except Exception as error:
            results = [error] * len(batch)
        for (_, future), result in zip(batch, results, strict=True):
            if future.done():  # its caller was cancelled
                continue
            if isinstance(result, Exception):
                future.set_exception(result)
            else:
                future.set_result(result)


async def together(*calls: Coroutine[Any, Any, Any]) -> Sequence[Any]:
    """Return the results of calls that run at the same time; if one fails, the others are cancelled."""
    tasks = [asyncio.create_task(call) for call in calls]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()


class Coalesced:
    """Calls ``action`` at most once per period, on behalf of everything that asked for it during the period.

    It runs in a context of its own: the end of the request that asked for it must not cancel what it starts.
    """

    def __init__(self, action: Callable[[], object], period_s: float) -> None:
        self._action = action
        self._period_s = period_s
        self._next_at = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def __call__(self) -> None:
        """Ask for a call: now, or at the end of the period since the last one."""
        if self._timer is None:
            loop = asyncio.get_running_loop()
            at = max(loop.time(), self._next_at)
            self._timer = loop.call_at(at, self._fire, context=contextvars.Context())

    def _fire(self) -> None:
        self._timer = None
        self._next_at = asyncio.get_running_loop().time() + self._period_s
        self._action()
