"""One thread for the model of a replica: it runs one job at a time, and the replica knows when it is broken."""

import asyncio
import logging
import os
import threading
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, TypeVar

from cosmos3_models import InvalidInput
from cosmos3_models.errors import Stopped
from serve.graph.callers import cancelled_with_caller

T = TypeVar("T")

logger = logging.getLogger("ray.serve")

HUNG_FACTOR = 5  # a step that takes so many times the longest before it is hung
EXIT_DELAY_S = 1.0  # between a replica's last word and its end, so that logs and health checks hear it
EXIT_STATUS = 70  # of a process that ends because it cannot work any more


class Patience(NamedTuple):
    """How long a replica waits for what may never come.

    Attributes:
        lease_s: a job whose caller has died stops within this time.
        step_timeout_s: a step that takes longer than this, and longer than can be expected of it, is hung.
    """

    lease_s: float
    step_timeout_s: float


class Broken(RuntimeError):
    """The replica cannot work any more."""


class Turn:
    """One job's turn in the thread: whether it shall stop, and its signs of life.

    Args:
        first_step_s: the longest that the first step can be expected to take.
    """

    def __init__(self, first_step_s: float) -> None:
        self._stop = threading.Event()
        self._expected_s = first_step_s
        self._longest_s = 0.0
        self._since = time.monotonic()

    def stop(self) -> None:
        self._stop.set()

    def stopped(self) -> bool:
        return self._stop.is_set()

    def raise_if_stopped(self) -> None:
        if self.stopped():
            raise Stopped

    def step(self, next_step_s: float | None = None) -> None:
        """Note that a step is done.

        Args:
            next_step_s: the longest that the next one can be expected to take; by default it is as long as the others.
        """
        now = time.monotonic()
        self._longest_s = max(self._longest_s, now - self._since)
        self._expected_s = HUNG_FACTOR * self._longest_s if next_step_s is None else next_step_s
        self._since = now

    def silent_s(self) -> float:
        """Seconds since the last sign of life."""
        return time.monotonic() - self._since

    def limit_s(self, step_timeout_s: float) -> float:
        """Seconds of silence after which the job is hung."""
        return max(step_timeout_s, self._expected_s)


class Worker:
    """Runs jobs one after the other, whatever Serve believes.

    Serve frees a replica's slot as soon as a request is cancelled, while its thread still runs. The lock here makes
    the next request wait until the cancelled one has seen its stop flag.

    A job that raises what is neither its request's fault nor a stop casts doubt on the process: a device error stays
    for as long as the process lives. So the smallest request is made once more. If that fails as well, or if a job
    hangs, the replica is unhealthy and its process ends. Its requests are lost like those of any replica that dies,
    and run again on another one.

    Args:
        warm_up: makes the smallest request. It is made here for the first time, so that a replica that cannot work
            does not start.
    """

    def __init__(self, warm_up: Callable[[], object], patience: Patience) -> None:
        self._warm_up = warm_up
        self._patience = patience
        self._turn = asyncio.Lock()
        self._thread = ThreadPoolExecutor(max_workers=1)
        self._current: Turn | None = None
        self._broken: str | None = None
        self._thread.submit(_use_all_cores).result()
        self._thread.submit(warm_up).result()

    async def run(self, job: Callable[[Turn], T], first_step_s: float) -> T:
        """The result of ``job``, which calls ``Turn.step`` after each step and stops once ``Turn.stopped`` says so.

        Args:
            first_step_s: the longest that its first step can be expected to take.
        """
        async with cancelled_with_caller(self._patience.lease_s), self._turn:
            turn = self._current = Turn(first_step_s)
            try:
                return await self._finish(job, turn)
            except (InvalidInput, Stopped):
                raise
            except Exception as error:
                await self._prove_health(error)
                raise
            finally:
                self._current = None

    def check(self) -> None:
        """Raise ``Broken`` if the replica cannot work any more; Serve asks from time to time."""
        turn = self._current
        if turn and not self._broken and turn.silent_s() > turn.limit_s(self._patience.step_timeout_s):
            self._break(f"a step hangs: no sign of life for {turn.silent_s():.0f} s")
        if self._broken:
            raise Broken(self._broken)

    async def _finish(self, job: Callable[[Turn], T], turn: Turn) -> T:
        future = asyncio.get_running_loop().run_in_executor(self._thread, job, turn)
        future.add_done_callback(_seen)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            turn.stop()
            await asyncio.wait([future])
            raise

    async def _prove_health(self, error: Exception) -> None:
        """Return if the smallest request can still be made; otherwise never: the process ends first."""
        logger.exception("A job failed; the smallest request will tell whether this replica still works.")
        traceback.clear_frames(error.__traceback__)  # whose tensors may fill the memory
        self._current = Turn(0)
        try:
            await self._finish(lambda _: self._warm_up(), self._current)
        except Exception:
            logger.exception("The smallest request failed as well.")
            self._break(f"{type(error).__name__}: {error}")
            await asyncio.Event().wait()

    def _break(self, reason: str) -> None:
        """Be unhealthy from now on, and end. Serve alone would let the replica drain for as long as a video takes."""
        self._broken = reason
        logger.error(f"This replica cannot work any more and ends: {reason}")
        threading.Timer(EXIT_DELAY_S, os._exit, [EXIT_STATUS]).start()


def _seen(future: "asyncio.Future[T]") -> None:
    """Tell asyncio that how a cancelled job ended is no oversight: nobody reads it."""
    if not future.cancelled():
        future.exception()


def _use_all_cores() -> None:
    import torch  # here: importing the stages must not bring it

    # Ray gives a replica with a fraction of a CPU one thread; the stages take turns, so each may have them all.
    torch.set_num_threads(cores())


def cores() -> int:
    """Cores that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)  # Linux alone has it
    return len(affinity(0)) if affinity else os.cpu_count() or 1
