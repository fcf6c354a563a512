"""Many calls as few: batches and coalesced notifications."""

import asyncio

import own_time
import pytest

from serve.graph.batching import Batches, Coalesced


def test_what_arrives_during_a_batch_is_the_next_one_and_each_caller_has_its_own_result() -> None:
    batches: list[list[int]] = []

    async def halves(batch: list[int]) -> list[float | Exception]:
        batches.append(batch)
        await asyncio.sleep(0.01)
        return [ValueError(f"got {number}, expected an even number") if number % 2 else number / 2 for number in batch]

    async def scenario() -> None:
        call: Batches[int, float] = Batches(halves)
        first = asyncio.create_task(call(2))
        await asyncio.sleep(0.005)
        results = await asyncio.gather(*(call(number) for number in range(4)), return_exceptions=True)
        assert await first == 1
        assert batches == [[2], [0, 1, 2, 3]]
        assert [results[0], results[2]] == [0, 1]
        assert [str(results[1]), str(results[3])] == [f"got {number}, expected an even number" for number in (1, 3)]

    own_time.run(scenario())


def test_a_cancelled_caller_and_a_failed_batch_hold_nobody_up() -> None:
    async def handle(batch: list[str]) -> list[str]:
        await asyncio.sleep(0.01)
        if "bad" in batch:
            raise OSError("the batch failed")
        return batch

    async def scenario() -> None:
        call: Batches[str, str] = Batches(handle)
        leaving, staying = asyncio.create_task(call("leaves")), asyncio.create_task(call("stays"))
        await asyncio.sleep(0.005)
        leaving.cancel()
        assert await staying == "stays"
        for result in await asyncio.gather(call("bad"), call("beside it"), return_exceptions=True):
            assert isinstance(result, OSError)
        assert await call("after it") == "after it"

    own_time.run(scenario())


@pytest.mark.parametrize("asked", [1, 100])
def test_the_first_notification_is_sent_at_once_and_one_more_covers_the_rest_of_the_period(asked: int) -> None:
    async def scenario() -> None:
        sent: list[int] = []
        notify = Coalesced(lambda: sent.append(1), 0.1)
        notify()
        await asyncio.sleep(0.02)
        assert len(sent) == 1
        for _ in range(asked):
            notify()
        await asyncio.sleep(0.02)
        assert len(sent) == 1
        await asyncio.sleep(0.2)
        assert len(sent) == 2, "what was asked for in between is not lost"

    own_time.run(scenario())
