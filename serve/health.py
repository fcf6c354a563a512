"""What keeps the graph from taking requests, found out with little work and in bounded time."""

import asyncio
import contextvars
import time
from collections.abc import Awaitable, Callable, Sequence

FRESH_S = 1.0  # a look is good for this long, however many ask
LIMIT_S = 1.0  # then the look goes on, and the answer does not wait for it


class Look:
    """One thing to look at. There is never more than one look at a time, so that one that hangs holds one thread.

    Args:
        name: of what is looked at, for when it does not answer.
        look: gives the names of what is not ready.
    """

    def __init__(self, name: str, look: Callable[[], Awaitable[Sequence[str]]]) -> None:
        self._name, self._look = name, look
        self._task: asyncio.Task[list[str]] | None = None
        self._begun_at = 0.0

    async def unready(self) -> list[str]:
        """What is not ready, or this name if that cannot be told."""
        now = time.monotonic()
        if self._task is None or (self._task.done() and now - self._begun_at > FRESH_S):
            self._begun_at = now
            # In a context of its own: the request that begins it may end before.
            self._task = asyncio.create_task(self._found(), context=contextvars.Context())
        done, _ = await asyncio.wait({self._task}, timeout=LIMIT_S)
        return self._task.result() if done else [f"{self._name} (no answer)"]

    async def _found(self) -> list[str]:
        try:
            return list(await self._look())
        except Exception as error:  # whatever it is, the answer is that it is not ready
            return [f"{self._name} ({type(error).__name__})"]


async def unready(looks: Sequence[Look]) -> list[str]:
    """All that is not ready, of looks that go on at once."""
    return [name for names in await asyncio.gather(*(look.unready() for look in looks)) for name in names]
