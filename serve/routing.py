"""Which replica gets a request: one with a free slot, for which the request waits here, quietly.

Serve's own router asks two replicas for each waiting request, again and again, and warns after fifty times. Minutes of
waiting are normal here. So a process looks once for all of its requests that wait, and looks rarely: the replicas that
its own requests leave it knows of without asking. Every process looks at the same uneven pace, so none is always first.

Ray ships this module to the caller by value, so a caller needs no more than Ray.
"""

import asyncio
import random
from typing import Any

import ray
from ray.serve._private.request_router import PowerOfTwoChoicesRequestRouter

LOOK_S = 0.05  # between two looks while requests wait; a replica idles for half of it between two of them
ANSWER_S = 2.0  # within which a replica says how many requests it has, even on a busy machine


class Router(PowerOfTwoChoicesRequestRouter):  # type: ignore[misc]  # Ray's classes are untyped
    """Chooses the less busy of two replicas with a free slot; marks the request with the process that calls.

    The mark is the session id, which Serve does not use with this router; ``serve.callers`` reads it.
    """

    queue_len_response_deadline_s = ANSWER_S
    max_queue_len_response_deadline_s = ANSWER_S

    _look: "asyncio.Task[None] | None" = None

    async def choose_replicas(self, *_: Any, **__: Any) -> list[list[Any]]:
        """One rank of candidates, as soon as there is one with a free slot."""
        while not (free := self._free()):
            if self._look is None or self._look.done():
                self._look = asyncio.create_task(self._look_for_free())
            await asyncio.shield(self._look)
        return [random.sample(free, min(2, len(free)))]

    def _free(self) -> list[Any]:
        """The replicas that have a free slot as far as this process knows."""
        known = ((replica, self.replica_queue_len_cache.get(replica.replica_id)) for replica in self._replicas_list)
        return [replica for replica, ongoing in known if ongoing is not None and ongoing < replica.max_ongoing_requests]

    async def _look_for_free(self) -> None:
        """Return once a replica is free or nobody waits. Others' requests free them as well, so one is asked each time,
        and each of which nothing is known."""
        while self._routing_tasks and not self._free():
            replicas = self._replicas_list
            unknown = [each for each in replicas if self.replica_queue_len_cache.get(each.replica_id) is None]
            await self._probe_queue_lens(unknown or random.sample(replicas, min(1, len(replicas))), 0)
            if not self._free():
                await asyncio.sleep(random.uniform(0.5, 1.5) * LOOK_S)

    def _fulfill_next_pending_request(self, replica: Any, request_metadata: Any = None) -> None:
        """Take the slot for the request at once: until it is sent, others that wait would choose the same one."""
        if any(not request.future.done() for request in self._pending_requests_to_fulfill):
            self.on_send_request(replica.replica_id)
        super()._fulfill_next_pending_request(replica, request_metadata)

    async def _choose_replica_for_request(self, pending_request: Any, **options: Any) -> Any:
        pending_request.metadata.session_id = f"caller:{ray.get_runtime_context().get_worker_id()}"
        return await super()._choose_replica_for_request(pending_request, **options)
