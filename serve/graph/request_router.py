"""Which replica gets a request: one with a free slot, for which the request waits here, quietly.

Serve's own router asks two replicas for each waiting request, again and again, and warns after fifty times. Minutes of
waiting are normal here. So a process looks once for all of its requests that wait. It hears of the end of its own
requests without asking, and asks a few of the other replicas at a time. Every process looks at the same uneven pace,
so none is always first.

Ray ships this module to the caller by value, so a caller needs no more than Ray.
"""

import asyncio
import random
from collections import Counter
from typing import Any

import ray
from ray.serve._private.request_router import PowerOfTwoChoicesRequestRouter

LOOK_S = 0.05  # between two looks while requests wait; a replica idles for half of it between two of them
ASKED = 4  # replicas at a look, of those that others' requests fill; one, if own requests will leave some as well
ANSWER_S = 2.0  # within which a replica says how many requests it has, even on a busy machine


class Router(PowerOfTwoChoicesRequestRouter):  # type: ignore[misc]  # Ray's classes are untyped
    """Chooses the less busy of two replicas with a free slot; marks the request with the process that calls.

    The mark is the session id, which Serve does not use with this router; ``serve.graph.callers`` reads it.
    """

    queue_len_response_deadline_s = ANSWER_S
    max_queue_len_response_deadline_s = ANSWER_S

    def initialize_state(self, **_: Any) -> None:
        """What Serve calls before the first request."""
        self._look: asyncio.Task[None] | None = None
        self._ours: Counter[Any] = Counter()  # requests of this process by the replica that works on them

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
        """Return once a replica is free or nobody waits."""
        while self._routing_tasks and not self._free():
            await self._probe_queue_lens(self._to_ask(), 0)
            if not self._free():
                await asyncio.sleep(random.uniform(0.5, 1.5) * LOOK_S)

    def _to_ask(self) -> list[Any]:
        """Replicas of which nothing is known, or else some that others' requests fill and so may free unheard."""
        unknown = [each for each in self._replicas_list if self.replica_queue_len_cache.get(each.replica_id) is None]
        foreign = [each for each in self._replicas_list if self._ours[each.replica_id] < each.max_ongoing_requests]
        count = 1 if any(self._ours.values()) else ASKED
        return unknown or random.sample(foreign, min(count, len(foreign)))

    def on_request_routed(self, pending_request: Any, replica_id: Any, result: Any) -> None:
        """A replica has accepted a request."""
        super().on_request_routed(pending_request, replica_id, result)
        self._ours[replica_id] += 1

    def decrement_queue_len_cache(self, replica_id: Any) -> None:
        """A request that a replica had accepted has ended."""
        super().decrement_queue_len_cache(replica_id)
        self._ours[replica_id] -= 1

    def _fulfill_next_pending_request(self, replica: Any, request_metadata: Any = None) -> None:
        """Take the slot for the request at once: until it is sent, others that wait would choose the same one."""
        if any(not request.future.done() for request in self._pending_requests_to_fulfill):
            self.on_send_request(replica.replica_id)
        super()._fulfill_next_pending_request(replica, request_metadata)

    async def _choose_replica_for_request(self, pending_request: Any, **options: Any) -> Any:
        pending_request.metadata.session_id = f"caller:{ray.get_runtime_context().get_worker_id()}"
        return await super()._choose_replica_for_request(pending_request, **options)
