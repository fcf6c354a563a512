"""Whether the calling process is still alive, so that no replica computes for a dead one.

A caller cancels its call. A caller that is killed cannot, and its call would run to the end. So
``serve.graph.request_router``, which runs in the caller's process, writes that process's id into each request, and the
replica periodically asks Ray's control store whether the process is alive. This works for all callers: Serve's HTTP
proxy, another replica, and another Ray job with a handle.

It needs private names of Ray, which are used here and nowhere else.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import ray

logger = logging.getLogger("ray.serve")

CHECK_TIMEOUT_S = 10.0
CHECKS_PER_LEASE = 3


@asynccontextmanager
async def cancelled_with_caller(lease_s: float) -> AsyncIterator[None]:
    """Cancel the current task within ``lease_s`` seconds after the calling process has died."""
    caller, task = _caller(), asyncio.current_task()
    if caller is None or task is None:
        yield
        return
    watch = asyncio.create_task(_cancel_once_gone(caller, task.cancel, lease_s / CHECKS_PER_LEASE))
    try:
        yield
    finally:
        watch.cancel()


async def _cancel_once_gone(caller: str, cancel: Callable[[], object], period_s: float) -> None:
    known = False  # a process that Ray does not know yet is not dead
    while True:
        with contextlib.suppress(Exception):  # the control store does not answer
            alive = await asyncio.wait_for(asyncio.to_thread(_is_alive, caller), CHECK_TIMEOUT_S)
            known = known or alive
            if known and not alive:
                logger.warning(f"The calling process {caller} has died; its request is cancelled.")
                cancel()
                return
        await asyncio.sleep(period_s)


def _caller() -> str | None:
    """Return the id of the process that made the current request, as its router wrote it."""
    from ray.serve.context import _get_serve_request_context

    mark, _, caller = _get_serve_request_context().session_id.partition(":")
    return caller if mark == "caller" and caller else None


def _is_alive(worker_id: str) -> bool:
    """Ask Ray's control store whether a worker or driver and its node are alive."""
    from ray._private.state import state
    from ray.core.generated.gcs_pb2 import WorkerTableData

    found = state._connect_and_get_accessor().get_worker_info(ray.WorkerID(bytes.fromhex(worker_id)))
    if found is None:
        return False
    worker = WorkerTableData.FromString(found)
    node = worker.worker_address.node_id.hex()
    return bool(worker.is_alive) and any(each["NodeID"] == node and each["Alive"] for each in ray.nodes())
