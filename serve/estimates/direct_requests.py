"""Requests of the sync route and of handle calls, which are not in the job table."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from serve.estimates.cost import Cost
from serve.estimates.observed_jobs import ActiveJob
from serve.graph.stage_names import PROMPT_UPSAMPLER
from serve.schema import Progress


class DirectRequests:
    """The direct requests of this process, as the estimates of stored jobs need them."""

    def __init__(self) -> None:
        self._requests: dict[object, ActiveJob] = {}
        self._started: dict[object, float] = {}

    @contextmanager
    def counted(self, cost: Cost, steps: int, upsampling: bool = False) -> Iterator[Callable[[Progress], None]]:
        """Count one request. Yields a function that takes its progress events.

        Args:
            upsampling: its prompt must be rewritten before it can start.
        """
        request = object()
        self._requests[request] = ActiveJob(0, "queued", None, 0, steps, cost, 0.0, upsampling_pending=upsampling)

        def note(event: Progress) -> None:
            before = self._requests[request]
            if event["stage"] == PROMPT_UPSAMPLER:  # it still waits
                self._requests[request] = before._replace(stage=event["stage"])
                return
            self._requests[request] = before._replace(status="in_progress", stage=event["stage"], step=event["step"])
            self._started.setdefault(request, time.monotonic())

        try:
            yield note
        finally:
            del self._requests[request]
            self._started.pop(request, None)

    def active(self) -> list[ActiveJob]:
        """Return all that have not ended, in order of arrival."""
        now = time.monotonic()
        return [
            request._replace(running_s=now - self._started.get(key, now)) for key, request in self._requests.items()
        ]
