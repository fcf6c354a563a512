"""Cancelling a streaming call: never while a replica may be starting it, when Ray loses cancellations."""

import asyncio
import contextvars
from collections.abc import AsyncIterator
from typing import Any

import own_time
import pytest

from serve.graph import streaming_call as references
from serve.graph.streaming_call import StreamingCall

REQUEST = contextvars.ContextVar("request", default="none")


class Response:
    """A call that gets its replica after a while, and notes when it is cancelled and on whose behalf it was made."""

    def __init__(self, start_s: float, error: Exception | None = None) -> None:
        self.request = REQUEST.get()
        self.started = False
        self.cancelled: list[str] = []
        self._start_s, self._error = start_s, error

    async def _to_object_ref_gen(self) -> AsyncIterator[str]:
        await asyncio.sleep(self._start_s)
        if self._error:
            raise self._error
        self.started = True
        return self._items()

    async def _items(self) -> AsyncIterator[str]:
        while True:
            yield "item"
            await asyncio.sleep(3600)

    def cancel(self) -> None:
        self.cancelled.append("running" if self.started else "waiting")


async def cancel(response: Response, after_s: float) -> None:
    """Read the call, and cancel it after ``after_s`` seconds."""
    call = StreamingCall(lambda: response)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(after_s):
            try:
                async for item in call.references():
                    assert item == "item"
            except asyncio.CancelledError:
                call.cancel()
                raise


@pytest.fixture(autouse=True)
def short_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(references, "START_S", 0.1)


def cancelled(start_s: float, after_s: float) -> list[str]:
    async def run() -> Response:
        response = Response(start_s)
        await cancel(response, after_s)
        assert response.cancelled == [], "not at once"
        await asyncio.sleep(0.3)
        return response

    return own_time.run(run()).cancelled


def test_a_call_that_is_about_to_start_is_cancelled_once_it_runs() -> None:
    assert cancelled(start_s=0.06, after_s=0.03) == ["running"]


def test_a_call_that_waits_for_its_turn_is_cancelled_before_it() -> None:
    assert cancelled(start_s=3600, after_s=0.03) == ["waiting"]


def test_a_call_that_runs_is_cancelled() -> None:
    assert cancelled(start_s=0, after_s=0.03) == ["running"]


def test_serve_does_not_cancel_the_call_with_the_request_that_made_it() -> None:
    async def run() -> Any:
        REQUEST.set("ours")
        made = []
        StreamingCall(lambda: made.append(Response(0)) or made[0])
        return made[0].request

    assert asyncio.run(run()) == "none"


def test_an_error_at_the_start_is_raised_and_one_after_the_cancellation_is_not_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def run() -> None:
        call = StreamingCall(lambda: Response(0, ValueError("full")))
        with pytest.raises(ValueError, match="full"):
            await anext(call.references())
        await cancel(Response(0.06, ValueError("full")), 0.03)
        await asyncio.sleep(0.3)

    own_time.run(run())
    assert not caplog.records
