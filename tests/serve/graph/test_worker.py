"""A replica's thread: one job at a time, and a broken replica reports itself unhealthy and exits."""

import asyncio
import gc
import os
import threading
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import BrokenExecutor
from typing import Any

import pytest

from cosmos3_models import InvalidInput
from cosmos3_models.errors import Stopped
from serve.graph import worker
from serve.graph.worker import HUNG_FACTOR, Broken, Patience, Turn, Worker

PATIENCE = Patience(lease_s=3, step_timeout_s=60)
IMPATIENCE = PATIENCE._replace(step_timeout_s=0.2)


class Model:
    """A model whose device breaks for good when a job wants it to."""

    def __init__(self) -> None:
        self.broken = False
        self.warmed_up = 0

    def warm_up(self) -> None:
        self.warmed_up += 1
        self._touch_device()

    def work(self, turn: Turn) -> str:
        self._touch_device()
        turn.step()
        return "done"

    def break_down(self, _: Turn) -> None:
        self.broken = True
        self._touch_device()

    def _touch_device(self) -> None:
        if self.broken:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")


@pytest.fixture
def exits(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The statuses with which the process would have ended."""
    statuses: list[int] = []
    monkeypatch.setattr(os, "_exit", statuses.append)
    monkeypatch.setattr(worker, "EXIT_DELAY_S", 0.1)
    return statuses


def with_worker(scenario: Callable[[Worker, Model], Awaitable[None]], patience: Patience = PATIENCE) -> None:
    async def scene() -> None:
        model = Model()
        await scenario(Worker(model.warm_up, patience), model)

    asyncio.run(scene())


async def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


def says_broken(running: Worker) -> bool:
    try:
        running.check()
    except Broken:
        return True
    return False


def test_a_replica_that_cannot_make_the_smallest_request_does_not_start() -> None:
    model = Model()
    model.broken = True
    with pytest.raises(RuntimeError, match="illegal memory access"):
        Worker(model.warm_up, PATIENCE)


def test_a_broken_device_makes_the_replica_unhealthy_and_ends_it(exits: list[int]) -> None:
    async def scenario(running: Worker, model: Model) -> None:
        assert await running.run(model.work, 1) == "done"
        running.check()
        job = asyncio.create_task(running.run(model.break_down, 1))
        await until(lambda: says_broken(running))
        waiting = asyncio.create_task(running.run(model.work, 1))
        await until(lambda: bool(exits))
        assert exits == [worker.EXIT_STATUS]
        assert not job.done(), "its caller learns of it as of any replica that dies"
        assert not waiting.done(), "nothing that waits is failed by a broken replica"
        for task in (job, waiting):
            task.cancel()

    with_worker(scenario)


@pytest.mark.parametrize("error", [RuntimeError("a kernel that does not fit this shape"), MemoryError()])
def test_a_failure_that_the_next_request_does_not_share_leaves_the_replica_healthy(
    exits: list[int], error: Exception
) -> None:
    async def scenario(running: Worker, model: Model) -> None:
        def fail(_: Turn) -> None:
            raise error

        with pytest.raises(type(error)):
            await running.run(fail, 1)
        assert model.warmed_up == 2, "the smallest request was made once more"
        running.check()
        assert await running.run(model.work, 1) == "done"

    with_worker(scenario)
    assert exits == []


@pytest.mark.parametrize("error", [InvalidInput("size", 1, "2", "so"), Stopped()])
def test_what_the_request_got_wrong_casts_no_doubt_on_the_replica(exits: list[int], error: Exception) -> None:
    async def scenario(running: Worker, model: Model) -> None:
        def refuse(_: Turn) -> None:
            raise error

        with pytest.raises(type(error)):
            await running.run(refuse, 1)
        assert model.warmed_up == 1

    with_worker(scenario)
    assert exits == []


def test_a_replica_that_has_lost_what_it_needs_is_unhealthy(exits: list[int]) -> None:
    lost: list[str] = []

    async def scene() -> None:
        running = Worker(lambda: None, PATIENCE, lambda: lost[0] if lost else None)
        running.check()
        lost.append("rank 1 ended")
        with pytest.raises(Broken, match="rank 1 ended"):
            running.check()
        await until(lambda: bool(exits))

    asyncio.run(scene())


def test_a_broken_executor_makes_the_replica_unhealthy(exits: list[int]) -> None:
    async def scenario(running: Worker, model: Model) -> None:
        def submit(*_: Any) -> None:
            raise BrokenExecutor("its thread is gone")

        running._thread.submit = submit  # type: ignore[method-assign, assignment]
        job = asyncio.create_task(running.run(model.work, 1))
        await until(lambda: says_broken(running))
        await until(lambda: bool(exits))
        job.cancel()

    with_worker(scenario)


class Clock:
    """Time that passes when a test says so."""

    now = 0.0

    def monotonic(self) -> float:
        return self.now


def test_a_step_that_hangs_is_noticed_and_a_slow_one_is_not(exits: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(worker, "time", clock)

    async def scenario(running: Worker, _: Model) -> None:
        may_step, done = threading.Semaphore(0), list[int]()

        def work(turn: Turn) -> None:
            for step in range(3):
                assert may_step.acquire(timeout=100)
                turn.step()
                done.append(step)

        async def finish(steps: int) -> None:
            may_step.release()
            await until(lambda: len(done) == steps)

        job = asyncio.create_task(running.run(work, first_step_s=100))
        await until(lambda: running._current is not None)
        clock.now += 99
        running.check()  # longer than the timeout, as was to be expected of the first step
        await finish(1)
        clock.now += HUNG_FACTOR * 99
        running.check()
        await finish(2)
        clock.now += HUNG_FACTOR * HUNG_FACTOR * 99 + 1
        assert says_broken(running)
        await finish(3)
        await job
        await until(lambda: bool(exits))

    with_worker(scenario)


def test_a_hung_job_is_noticed_even_when_its_caller_has_given_up(exits: list[int]) -> None:
    async def scenario(running: Worker, _: Model) -> None:
        release = threading.Event()
        job = asyncio.create_task(running.run(lambda _: release.wait(100), first_step_s=0))
        await asyncio.sleep(0.05)
        job.cancel()
        await until(lambda: says_broken(running))
        release.set()
        with pytest.raises(asyncio.CancelledError):
            await job
        await until(lambda: bool(exits))

    with_worker(scenario, IMPATIENCE)


def test_a_step_may_take_five_times_the_longest_before_it() -> None:
    created = time.monotonic()
    turn = Turn(first_step_s=100)
    assert turn.limit_s(30) == 100
    time.sleep(0.05)
    turn.step()
    assert HUNG_FACTOR * 0.05 <= turn.limit_s(0) <= HUNG_FACTOR * (time.monotonic() - created)
    assert turn.limit_s(30) == 30
    turn.step(next_step_s=70)
    assert turn.limit_s(30) == 70


def test_a_cancelled_job_stops_between_steps_and_the_next_one_waits_for_that() -> None:
    async def scenario(running: Worker, model: Model) -> None:
        ended: list[float] = []

        def endless(turn: Turn) -> None:
            while not turn.stopped():
                time.sleep(0.05)
            ended.append(time.monotonic())
            turn.raise_if_stopped()

        job = asyncio.create_task(running.run(endless, 1))
        await asyncio.sleep(0.1)
        job.cancel()
        assert await running.run(model.work, 1) == "done"
        assert ended
        with pytest.raises(asyncio.CancelledError):
            await job

    with_worker(scenario)


def test_a_cancelled_job_leaves_no_error_behind() -> None:
    unhandled: list[dict[str, Any]] = []

    def until_stopped(turn: Turn) -> None:
        while not turn.stopped():
            time.sleep(0.001)
        raise Stopped

    async def scenario(worker: Worker, _: Model) -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: unhandled.append(context))
        job = asyncio.create_task(worker.run(until_stopped, 1))
        await asyncio.sleep(0.05)
        job.cancel()
        await asyncio.wait([job])
        del job
        gc.collect()
        assert not unhandled

    with_worker(scenario)


def test_a_machine_that_cannot_tell_its_affinity_uses_all_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    assert worker.cores() == os.cpu_count()
