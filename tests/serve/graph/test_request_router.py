"""Requests wait for a free replica without a warning, and share what becomes free, whoever freed it."""

import asyncio
import logging
from collections.abc import Awaitable, Callable

import own_time
import pytest
from ray.serve._private.common import DeploymentHandleSource, DeploymentID, ReplicaID, RequestMetadata
from ray.serve._private.request_router.common import PendingRequest

from serve.graph import request_router as routing
from serve.graph.request_router import Router

DEPLOYMENT = DeploymentID(name="Denoiser", app_name="cosmos3")


class Replica:
    """A replica as a router sees it."""

    max_ongoing_requests = 1
    node_id = availability_zone = "here"
    multiplexed_model_ids: tuple[str, ...] = ()

    def __init__(self, name: str) -> None:
        self.replica_id = ReplicaID(name, DEPLOYMENT)
        self.ongoing = 0
        self.asked = 0
        self.rejected = 0
        self.reachable = True

    def accepts(self) -> bool:
        """Take a request if there is a free slot."""
        free = self.ongoing < self.max_ongoing_requests
        self.ongoing += free
        self.rejected += not free
        return free

    async def get_queue_len(self, **_: float) -> int:
        self.asked += 1
        if not self.reachable:
            raise ConnectionError
        return self.ongoing

    def __hash__(self) -> int:
        return hash(self.replica_id)


def scene(scenario: Callable[[Router], Awaitable[None]], monkeypatch: pytest.MonkeyPatch) -> None:
    """Run with a router of its own, whose requests have no sender."""
    monkeypatch.setattr(routing.ray, "get_runtime_context", lambda: _Context)

    async def run() -> None:
        await scenario(new_router())

    own_time.run(run())


def new_router() -> Router:
    router = Router(
        deployment_id=DEPLOYMENT,
        handle_source=DeploymentHandleSource.REPLICA,
        self_node_id="here",
        self_actor_id="me",
        self_actor_handle=None,
        use_replica_queue_len_cache=True,
    )
    router.initialize_state()
    return router


class _Context:
    @staticmethod
    def get_worker_id() -> str:
        return "me"


async def choose(router: Router, number: int = 0) -> Replica:
    """What Serve does with a request until a replica accepts it."""
    metadata = RequestMetadata(request_id=str(number), internal_request_id=str(number))
    request = PendingRequest([], {}, metadata)
    is_retry = False
    while True:
        replica: Replica = await router._choose_replica_for_request(request, is_retry=is_retry)
        router.on_send_request(replica.replica_id)
        accepted = replica.accepts()
        await asyncio.sleep(0.01)  # until the answer is here
        router.on_new_queue_len_info(replica.replica_id, replica.ongoing)
        if accepted:
            router.on_request_routed(request, replica.replica_id, None)
            return replica
        is_retry = True


def end(router: Router, replica: Replica) -> None:
    """A request of this router's process ends."""
    replica.ongoing -= 1
    router.decrement_queue_len_cache(replica.replica_id)


async def ready(router: Router, *names: str) -> list[Replica]:
    """Replicas that the router has heard of."""
    replicas = [Replica(name) for name in names]
    router.update_replicas(replicas)
    await asyncio.sleep(0.01)
    return replicas


def test_requests_wait_quietly_and_in_order(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(routing, "POLL_S", 0.001)

    async def scenario(router: Router) -> None:
        (replica,) = await ready(router, "a")
        await choose(router)
        waiting = [asyncio.create_task(choose(router, number)) for number in range(1, 5)]
        await asyncio.sleep(0.3)  # Serve warns at every fiftieth poll for a request
        for number in range(4):
            assert [request.done() for request in waiting] == [each < number for each in range(4)]
            end(router, replica)
            await asyncio.sleep(0.05)
        assert all(request.done() for request in waiting)
        assert replica.rejected == 0

    with caplog.at_level(logging.INFO, "ray.serve"):
        scene(scenario, monkeypatch)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_a_process_asks_no_replica_that_its_own_requests_fill(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(router: Router) -> None:
        replicas = await ready(router, *"abcdefgh")
        for number in range(8):
            await choose(router, number)
        waiting = [asyncio.create_task(choose(router, 8 + number)) for number in range(8)]
        before = sum(replica.asked for replica in replicas)
        await asyncio.sleep(5 * routing.POLL_S)
        assert sum(replica.asked for replica in replicas) == before
        for replica in replicas:
            end(router, replica)
        chosen = await asyncio.wait_for(asyncio.gather(*waiting), 20 * routing.POLL_S)
        assert {replica.replica_id for replica in chosen} == {replica.replica_id for replica in replicas}
        assert sum(replica.rejected for replica in replicas) == 0

    scene(scenario, monkeypatch)


def test_one_look_serves_all_that_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(router: Router) -> None:
        replicas = await ready(router, *"abcdefgh")
        for replica in replicas:
            assert replica.accepts()  # a request of another process
        waiting = [asyncio.create_task(choose(router, number)) for number in range(8)]
        await asyncio.sleep(3 * routing.POLL_S)
        before = sum(replica.asked for replica in replicas)
        await asyncio.sleep(10 * routing.POLL_S)
        assert sum(replica.asked for replica in replicas) - before <= 20 * routing.POLLED
        for request in waiting:
            request.cancel()

    scene(scenario, monkeypatch)


def test_what_another_process_frees_is_found_and_taken_once(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(router: Router) -> None:
        (replica,) = await ready(router, "a")
        assert replica.accepts()  # a request of another process
        waiting = [asyncio.create_task(choose(router, number)) for number in range(3)]
        await asyncio.sleep(3 * routing.POLL_S)
        assert not any(request.done() for request in waiting)
        replica.ongoing = 0
        await asyncio.sleep(3 * routing.POLL_S)
        assert [request.done() for request in waiting] == [True, False, False]
        assert replica.rejected <= 1  # the first time it may not know how long the queue is
        for request in waiting:
            request.cancel()

    scene(scenario, monkeypatch)


def test_nobody_looks_once_nobody_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(router: Router) -> None:
        (replica,) = await ready(router, "a")
        await choose(router)
        waiting = asyncio.create_task(choose(router, 1))
        await asyncio.sleep(2 * routing.POLL_S)
        waiting.cancel()
        await asyncio.sleep(2 * routing.POLL_S)
        asked = replica.asked
        await asyncio.sleep(4 * routing.POLL_S)
        assert replica.asked == asked
        end(router, replica)
        assert await asyncio.wait_for(choose(router, 2), 1) is replica  # a cancelled request takes no slot

    scene(scenario, monkeypatch)


def test_a_replica_that_comes_later_serves_those_who_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(router: Router) -> None:
        (first,) = await ready(router, "a")
        first.reachable = False
        router.on_replica_actor_unavailable(first.replica_id)
        waiting = asyncio.create_task(choose(router))
        await asyncio.sleep(3 * routing.POLL_S)
        assert first.asked < 10 and not waiting.done()  # it polls no faster when there is no answer
        router.update_replicas([])
        await asyncio.sleep(2 * routing.POLL_S)
        (second,) = await ready(router, "b")
        assert await asyncio.wait_for(waiting, 1) is second

    scene(scenario, monkeypatch)


def test_processes_share_a_replica_fairly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routing, "POLL_S", 0.005)
    jobs, clients = 60, 40

    async def scenario(runner: Router) -> None:
        ingress = new_router()
        (replica,) = await ready(runner, "a")
        ingress.update_replicas([replica])
        turns: list[Router] = []

        async def make(router: Router, number: int) -> None:
            await choose(router, number)
            turns.append(router)
            await asyncio.sleep(0.005)
            end(router, replica)

        await asyncio.gather(
            *(make(runner, number) for number in range(jobs)), *(make(ingress, number) for number in range(clients))
        )
        share = turns[:clients].count(ingress) / clients
        assert 0.2 < share < 0.8  # by chance alone one time in ten thousand outside

    scene(scenario, monkeypatch)
