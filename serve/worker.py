"""One thread for the model of a replica, which runs one job at a time and can be stopped between steps."""

import asyncio
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


class Worker:
    """Runs jobs one after the other, whatever Serve believes.

    Serve frees a replica's slot as soon as a request is cancelled, while its thread still runs. The lock here makes
    the next request wait until the cancelled one has seen its stop flag.
    """

    def __init__(self) -> None:
        self._turn = asyncio.Lock()
        self._thread = ThreadPoolExecutor(max_workers=1, initializer=_use_all_cores)

    async def run(self, job: Callable[[threading.Event], T]) -> T:
        """The result of ``job``, which looks at its argument between steps and raises once it is set."""
        stop = threading.Event()
        async with self._turn:
            future = asyncio.get_running_loop().run_in_executor(self._thread, job, stop)
            try:
                return await asyncio.shield(future)
            except asyncio.CancelledError:
                stop.set()
                await asyncio.wait([future])
                raise


def _use_all_cores() -> None:
    import torch  # here: importing the stages must not bring it

    # Ray gives a replica with a fraction of a CPU one thread; the stages take turns, so each may have them all.
    torch.set_num_threads(len(os.sched_getaffinity(0)))
