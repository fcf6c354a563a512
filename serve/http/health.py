"""What keeps the graph from taking requests, found out with little work and in bounded time."""

import asyncio
import contextvars
import re
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence

from ray.serve.schema import ApplicationStatusOverview, ReplicaState

from serve.errors import NotReady

GRAPH = "the graph"
FRESH_S = 1.0  # a look is good for this long, however many ask
LIMIT_S = 0.8  # then the look goes on, and the answer does not wait for it


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


def unready_deployments(application: ApplicationStatusOverview) -> dict[str, str]:
    """The deployments without a running replica, each with the reason where Serve knows one."""
    if not application.deployments:  # the builder runs, or has failed
        return {GRAPH: reason(application.message)}
    return {
        name: reason(deployment.message)
        for name, deployment in application.deployments.items()
        if deployment.replica_states.get(ReplicaState.RUNNING, 0) == 0
    }


def public(unready: Mapping[str, str]) -> list[str]:
    """Names and reasons as anybody may read them: of paths their last two parts, and no URLs."""
    return [_without_places(f"{name}: {why}" if why else name) for name, why in unready.items()]


def reason(message: str) -> str:
    """One line of a message of Serve's: the last error of its stack traces, or its first line."""
    errors = re.findall(r"^(?:\w+\.)*([A-Z]\w*: .+)$", message, re.MULTILINE)
    first, *_ = [*message.splitlines(), ""]
    return errors[-1] if errors else first


def _without_places(text: str) -> str:
    return re.sub(r"(?:/[^/\s:]+)+(?=/[^/\s:]+/[^/\s:]+)/", "", re.sub(r"[\w+.-]+://\S+", "(a URL)", text))


def not_ready(missing: Sequence[str]) -> NotReady:
    """The answer of /health."""
    return NotReady(f"not ready: {'; '.join(missing)}")


async def unready(looks: Sequence[Look]) -> list[str]:
    """All that is not ready, of looks that go on at once."""
    return [name for names in await asyncio.gather(*(look.unready() for look in looks)) for name in names]
