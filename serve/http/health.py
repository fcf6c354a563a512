"""What keeps the graph from accepting requests, found with little work and in bounded time."""

import asyncio
import contextvars
import re
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence

from ray.serve.schema import ApplicationStatusOverview, ReplicaState

from serve.errors import NotReady

GRAPH = "the graph"
FRESH_S = 1.0  # the result of a check is reused for this long
LIMIT_S = 0.8  # a slower check continues, and the response does not wait for it


class Look:
    """One readiness check. At most one runs at a time, so a check that hangs occupies one thread.

    Args:
        name: of the checked part, for the case that it does not answer.
        look: returns the names of the parts that are not ready.
    """

    def __init__(self, name: str, look: Callable[[], Awaitable[Sequence[str]]]) -> None:
        self._name, self._look = name, look
        self._task: asyncio.Task[list[str]] | None = None
        self._started_at = 0.0

    async def unready(self) -> list[str]:
        """The names of the parts that are not ready; this check's own name if it does not answer in time."""
        now = time.monotonic()
        if self._task is None or (self._task.done() and now - self._started_at > FRESH_S):
            self._started_at = now
            # In a context of its own: the request that starts the check may end first.
            self._task = asyncio.create_task(self._found(), context=contextvars.Context())
        done, _ = await asyncio.wait({self._task}, timeout=LIMIT_S)
        return self._task.result() if done else [f"{self._name} (no answer)"]

    async def _found(self) -> list[str]:
        try:
            return list(await self._look())
        except Exception as error:  # whatever failed, the part is not ready
            return [f"{self._name} ({type(error).__name__})"]


def unready_deployments(application: ApplicationStatusOverview) -> dict[str, str]:
    """The deployments without a running replica, each with the reason if Serve knows one."""
    if not application.deployments:  # the builder is still running, or has failed
        return {GRAPH: reason(application.message)}
    return {
        name: reason(deployment.message)
        for name, deployment in application.deployments.items()
        if deployment.replica_states.get(ReplicaState.RUNNING, 0) == 0
    }


def public(unready: Mapping[str, str]) -> list[str]:
    """Names and reasons in a form that is safe to publish: the last two parts of paths, and no URLs."""
    return [_without_places(f"{name}: {why}" if why else name) for name, why in unready.items()]


def reason(message: str) -> str:
    """One line of a status message of Serve: the last error in its stack traces, or the first line."""
    errors = re.findall(r"^(?:\w+\.)*([A-Z]\w*: .+)$", message, re.MULTILINE)
    first, *_ = [*message.splitlines(), ""]
    return errors[-1] if errors else first


def _without_places(text: str) -> str:
    return re.sub(r"(?:/[^/\s:]+)+(?=/[^/\s:]+/[^/\s:]+)/", "", re.sub(r"[\w+.-]+://\S+", "(a URL)", text))


def not_ready(missing: Sequence[str]) -> NotReady:
    """The response of /health."""
    return NotReady(f"not ready: {'; '.join(missing)}")


async def unready(looks: Sequence[Look]) -> list[str]:
    """The names of all parts that are not ready; the checks run at the same time."""
    return [name for names in await asyncio.gather(*(look.unready() for look in looks)) for name in names]
