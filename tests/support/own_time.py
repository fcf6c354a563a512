"""Coroutines in a time of their own, which passes only while they wait: no machine is too slow or too fast for them."""

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class _NoWaits(selectors.DefaultSelector):
    """Moves the time on where another selector would wait for the next timer."""

    now = 0.0

    def select(self, timeout: float | None = None) -> Any:
        ready = super().select(0 if timeout else timeout)
        if timeout and not ready:
            self.now += timeout
        return ready


class _Loop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._clock = _NoWaits()
        super().__init__(self._clock)

    def time(self) -> float:
        return self._clock.now


def run(scenario: Coroutine[Any, Any, T]) -> T:
    """``asyncio.run`` for coroutines that wait for timers and for each other, but for no thread and no process."""
    with asyncio.Runner(loop_factory=_Loop) as runner:
        return runner.run(scenario)
