"""The thread in which a replica's model computes, one job at a time, and the check whether the replica still works."""

import asyncio
import logging
import os
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import NamedTuple, TypeVar

from cosmos3_models import InvalidInput
from cosmos3_models.errors import Stopped
from serve.errors import ContentRefused
from serve.graph.callers import cancelled_with_caller

T = TypeVar("T")

logger = logging.getLogger("ray.serve")

HUNG_FACTOR = 5  # a step that takes this many times the longest one before it is hung
SLOWEST_FLOPS = {"cuda": 2e13, "cpu": 5e8}
"""Operations per second that every usable device reaches: a first step that is slower than this is hung."""
EXIT_DELAY_S = 1.0  # between a replica's last log line and its end, so that the log and a health check get it
EXIT_STATUS = 70  # of a process that ends because it is broken


class Patience(NamedTuple):
    """How long a caller or a step may be silent, in seconds.

    Attributes:
        lease_s: a job stops within this time after its caller has died.
        step_timeout_s: a step is hung if it takes longer than this and longer than expected.
    """

    lease_s: float
    step_timeout_s: float


class Broken(RuntimeError):
    """The replica is broken and must be replaced."""


class Turn:
    """One job's turn in the thread: its stop flag, and when its last step was done.

    Args:
        first_step_s: the longest expected time of the first step.
    """

    def __init__(self, first_step_s: float) -> None:
        self._stop = threading.Event()
        self._expected_s = first_step_s
        self._longest_s = 0.0
        self._since = time.monotonic()

    def stop(self) -> None:
        """Ask the job to end before its next step."""
        self._stop.set()

    def stopped(self) -> bool:
        """Tell whether the job must end."""
        return self._stop.is_set()

    def raise_if_stopped(self) -> None:
        """Raise ``Stopped`` if the job must end."""
        if self.stopped():
            raise Stopped

    def step(self, next_step_s: float | None = None) -> None:
        """Note that a step is done.

        Args:
            next_step_s: the longest expected time of the next one; by default ``HUNG_FACTOR`` times the longest so far.
        """
        now = time.monotonic()
        self._longest_s = max(self._longest_s, now - self._since)
        self._expected_s = HUNG_FACTOR * self._longest_s if next_step_s is None else next_step_s
        self._since = now

    def silent_s(self) -> float:
        """Return the seconds since the last step, or since the start."""
        return time.monotonic() - self._since

    def limit_s(self, step_timeout_s: float) -> float:
        """Return the seconds of silence after which the job is hung."""
        return max(step_timeout_s, self._expected_s)


class Worker:
    """Runs jobs one at a time.

    Serve frees a replica's slot as soon as a request is cancelled, while its thread still runs. The lock here makes
    the next request wait until the cancelled one has seen its stop flag.

    After an error that is neither about the request nor a stop, the process may be broken: a device error stays for
    as long as the process lives. So the smallest request runs once more. If that fails as well, or if a job hangs, the
    replica is unhealthy and its process ends. Its requests are lost like those of any replica that dies, and are
    retried on another one.

    Args:
        warm_up: runs the smallest request. The constructor calls it, so that a broken replica does not start.
        patience: how long a caller or a step may be silent.
        lost: names what the replica cannot work without and does not have any more; None if nothing is lost.
    """

    def __init__(
        self, warm_up: Callable[[], object], patience: Patience, lost: Callable[[], str | None] = lambda: None
    ) -> None:
        self._warm_up = warm_up
        self._lost = lost
        self._patience = patience
        self._turn = asyncio.Lock()
        self._thread = ThreadPoolExecutor(max_workers=1)
        self._current: Turn | None = None
        self._broken: str | None = None
        self._thread.submit(use_all_cores).result()
        self._thread.submit(warm_up).result()

    async def run(self, job: Callable[[Turn], T], first_step_s: float) -> T:
        """Return the result of ``job``, which calls ``Turn.step`` after each step and ends once it is stopped.

        Args:
            first_step_s: the longest expected time of its first step.
        """
        async with cancelled_with_caller(self._patience.lease_s), self._turn:
            turn = self._current = Turn(first_step_s)
            try:
                return await self._finish(job, turn)
            except (InvalidInput, ContentRefused, Stopped):
                raise
            except Exception as error:
                await self._prove_health(error)
                raise
            finally:
                self._current = None

    def check(self) -> None:
        """Raise ``Broken`` if the replica must be replaced. Serve calls this periodically."""
        turn = self._current
        if turn and not self._broken and turn.silent_s() > turn.limit_s(self._patience.step_timeout_s):
            self._break(f"a step hangs: no progress for {turn.silent_s():.0f} s")
        if not self._broken and (lost := self._lost()):
            self._break(lost)
        if self._broken:
            raise Broken(self._broken)

    async def _finish(self, job: Callable[[Turn], T], turn: Turn) -> T:
        future = asyncio.get_running_loop().run_in_executor(self._thread, job, turn)
        future.add_done_callback(_retrieve_error)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            turn.stop()
            await asyncio.wait([future])
            raise

    async def _prove_health(self, error: Exception) -> None:
        """Return if the smallest request still works; otherwise never: the process ends first."""
        logger.exception("A job failed; running the smallest request to check whether this replica still works.")
        traceback.clear_frames(error.__traceback__)  # their tensors may fill the memory
        self._current = Turn(0)
        try:
            await self._finish(lambda _: self._warm_up(), self._current)
        except Exception:
            logger.exception("The smallest request failed as well.")
            self._break(f"{type(error).__name__}: {error}")
            await asyncio.Event().wait()

    def _break(self, reason: str) -> None:
        """Become unhealthy and exit. Serve alone would let the replica drain for as long as a video takes."""
        self._broken = reason
        logger.error(f"This replica is broken and exits: {reason}")
        threading.Timer(EXIT_DELAY_S, os._exit, [EXIT_STATUS]).start()


def _retrieve_error(future: "asyncio.Future[T]") -> None:
    """Keep asyncio from logging the error of a cancelled job as unretrieved."""
    if not future.cancelled():
        future.exception()


def use_all_cores() -> None:
    """Let PyTorch compute with all cores in this thread."""
    import torch  # here: importing the stages must not import it

    # Ray gives a replica with a fraction of a CPU one thread; the stages take turns, so each may use all cores.
    torch.set_num_threads(cores())


def cores() -> int:
    """Return the number of cores that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)  # Linux alone has it
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def seconds_at_most(flops: int, device: str) -> float:
    """Return the most seconds that this many operations can take on cpu or cuda."""
    return flops / SLOWEST_FLOPS[device]


@contextmanager
def logged(what: str) -> Iterator[None]:
    """Log what was done and its seconds."""
    start = time.perf_counter()
    yield
    logger.info(f"{what} in {time.perf_counter() - start:.1f} s.")
