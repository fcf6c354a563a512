"""The router that picks a replica with a free slot for a request, which waits here until there is one.

Serve's own router polls two replicas for each waiting request and warns after fifty polls. Minutes of waiting are
normal here. So a process polls once for all of its waiting requests. It knows when its own requests end, and polls only
a few of the replicas that are busy with other processes' requests. Every process polls at the same random intervals,
so none is always first.

Ray sends this module to the caller by value, so a caller needs only Ray.
"""

import asyncio
import random
from collections import Counter
from typing import Any

import ray
from ray.serve._private.request_router import PowerOfTwoChoicesRequestRouter

POLL_S = 0.05  # mean interval of polls while requests wait; a replica idles for half of it between two requests
POLLED = 4  # replicas in one poll, of those busy with others' requests; one, if own requests will free some as well
RESPONSE_S = 2.0  # within which a replica reports its number of requests, even on a busy machine


class Router(PowerOfTwoChoicesRequestRouter):  # type: ignore[misc]  # Ray's classes are untyped
    """Chooses the less busy of two replicas with a free slot, and marks the request with the calling process.

    The mark is the session id, which Serve does not use with this router; ``serve.graph.callers`` reads it.
    """

    queue_len_response_deadline_s = RESPONSE_S
    max_queue_len_response_deadline_s = RESPONSE_S

    def initialize_state(self, **_: Any) -> None:
        """Initialize what Serve's constructor does not know; Serve calls this before the first request."""
        self._polling: asyncio.Task[None] | None = None
        self._ours: Counter[Any] = Counter()  # requests of this process by the replica that works on them

    async def choose_replicas(self, *_: Any, **__: Any) -> list[list[Any]]:
        """Return one rank of candidates, as soon as a replica has a free slot."""
        while not (free := self._free()):
            if self._polling is None or self._polling.done():
                self._polling = asyncio.create_task(self._poll_until_free())
            await asyncio.shield(self._polling)
        return [random.sample(free, min(2, len(free)))]

    def _free(self) -> list[Any]:
        """Return the replicas that have a free slot as far as this process knows."""
        known = ((replica, self.replica_queue_len_cache.get(replica.replica_id)) for replica in self._replicas_list)
        return [replica for replica, ongoing in known if ongoing is not None and ongoing < replica.max_ongoing_requests]

    async def _poll_until_free(self) -> None:
        """Return once a replica is free or no request waits."""
        while self._routing_tasks and not self._free():
            await self._probe_queue_lens(self._to_poll(), 0)
            if not self._free():
                await asyncio.sleep(random.uniform(0.5, 1.5) * POLL_S)

    def _to_poll(self) -> list[Any]:
        """Return replicas in an unknown state, or else some whose slots others' requests may free at any time."""
        unknown = [each for each in self._replicas_list if self.replica_queue_len_cache.get(each.replica_id) is None]
        foreign = [each for each in self._replicas_list if self._ours[each.replica_id] < each.max_ongoing_requests]
        count = 1 if any(self._ours.values()) else POLLED
        return unknown or random.sample(foreign, min(count, len(foreign)))

    def on_request_routed(self, pending_request: Any, replica_id: Any, result: Any) -> None:
        """Note that a replica has accepted a request."""
        super().on_request_routed(pending_request, replica_id, result)
        self._ours[replica_id] += 1

    def decrement_queue_len_cache(self, replica_id: Any) -> None:
        """Note that an accepted request has ended."""
        super().decrement_queue_len_cache(replica_id)
        self._ours[replica_id] -= 1

    def _fulfill_next_pending_request(self, replica: Any, request_metadata: Any = None) -> None:
        """Reserve the slot at once: until the request is sent, other waiting requests would choose the same one."""
        if any(not request.future.done() for request in self._pending_requests_to_fulfill):
            self.on_send_request(replica.replica_id)
        super()._fulfill_next_pending_request(replica, request_metadata)

    async def _choose_replica_for_request(self, pending_request: Any, **options: Any) -> Any:
        pending_request.metadata.session_id = f"caller:{ray.get_runtime_context().get_worker_id()}"
        return await super()._choose_replica_for_request(pending_request, **options)
