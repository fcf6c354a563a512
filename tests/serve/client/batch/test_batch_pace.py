"""How many videos are on the server at a time, and work that threads share."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from serve.client.batch.pace import FIRST_AHEAD, MOST, Pace, Place, Stopped
from serve.client.batch.threads import share
from serve.client.videos import Full, RemoteError

QUEUED, RUNNING = {"type": "queued"}, {"type": "progress"}
WAIT_S = 60


class Server:
    """As many threads as it takes hold places, in the order in which they got them."""

    def __init__(self, pace: Pace) -> None:
        self.pace, self.places = pace, list[Place]()
        self.leave = [threading.Event() for _ in range(2 * MOST)]
        for number in range(len(self.leave)):
            threading.Thread(target=self._hold, args=(number,), daemon=True).start()

    def _hold(self, number: int) -> None:
        try:
            with self.pace.place() as place:
                place.video_id = f"video_{number}"
                self.places.append(place)
                self.leave[number].wait()
        except Stopped:
            pass

    def hold(self, count: int) -> bool:
        """Whether so many places are held, once there are so many, and no more."""
        wait_until(lambda: len(self.places) >= count)
        time.sleep(0.1)
        return len(self.places) == count


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture
def server() -> Iterator[Server]:
    """One whose first places are held."""
    server = Server(Pace())
    assert server.hold(FIRST_AHEAD)
    yield server
    server.pace.stop()
    for event in server.leave:
        event.set()


def test_a_few_wait_ahead_of_those_that_run(server: Server) -> None:
    server.places[0].saw(QUEUED)
    assert server.hold(FIRST_AHEAD)
    server.places[0].saw(RUNNING)
    server.places[0].saw(RUNNING)
    assert server.hold(FIRST_AHEAD + 1)


def test_more_wait_once_the_server_had_none_left(server: Server) -> None:
    with server.pace._changed:  # all start at the same moment
        for place in server.places[:-1]:
            place.waiting = False
    server.places[FIRST_AHEAD - 1].saw(RUNNING)
    assert server.hold(FIRST_AHEAD + 2 * FIRST_AHEAD)


def test_no_more_than_the_most_are_on_the_server(server: Server) -> None:
    deadline = time.monotonic() + WAIT_S
    while len(server.places) < MOST:
        assert time.monotonic() < deadline
        for place in [*server.places]:
            place.saw(RUNNING)
        time.sleep(0.01)
    for place in [*server.places]:
        place.saw(RUNNING)
    assert server.hold(MOST)


def test_a_full_server_gets_no_more_than_it_took(server: Server) -> None:
    refused, *taken = server.places
    refused.video_id = None
    taken[0].video_id = None
    server.pace.refused(Full("full", 0.01))
    assert server.pace._ahead == FIRST_AHEAD - 2
    for place in server.places:
        place.video_id = None
    server.pace.refused(Full("full", 0.01))
    assert server.pace._ahead == 1


def test_one_submits_while_the_others_wait_for_their_turn() -> None:
    pace, submitting, most = Pace(), list[int](), list[int]()

    def work(take: Callable[[], int | None]) -> None:
        while (item := take()) is not None:
            with pace.turn():
                submitting.append(item)
                most.append(len(submitting))
                time.sleep(0.01)
                submitting.remove(item)

    share(iter(range(20)), work, 8)
    assert most == [1] * 20


def test_a_refused_one_tries_again_as_soon_as_a_video_of_the_batch_has_started(server: Server) -> None:
    refused = threading.Thread(target=server.pace.refused, args=(Full("full", 2 * WAIT_S),))
    refused.start()

    def tried_again() -> bool:
        server.places[0].saw(QUEUED)
        server.places[0].saw(RUNNING)
        return not refused.is_alive()

    wait_until(tried_again)
    start = time.monotonic()
    server.pace.refused(RemoteError("gone", 0.2))
    assert time.monotonic() - start >= 0.2


def test_the_end_of_a_batch_names_what_has_not_started_and_lets_nobody_in(server: Server) -> None:
    server.places[1].saw(RUNNING)
    assert server.hold(FIRST_AHEAD + 1)
    waiting = {place.video_id for place in server.places if place is not server.places[1]}
    assert set(server.pace.stop()) == waiting
    for enter in (server.pace.place, server.pace.turn):
        with pytest.raises(Stopped), ExitStack() as stack:
            stack.enter_context(enter())
    with pytest.raises(Stopped):
        server.pace.refused(RemoteError("gone", 60))


def test_the_end_of_a_batch_waits_for_the_name_of_the_video_that_is_being_submitted() -> None:
    pace, submitting, ended = Pace(), threading.Event(), threading.Event()

    def make() -> None:
        with pace.place() as place:
            with pace.turn():
                submitting.set()
                time.sleep(0.2)  # the server has the video, and its answer is on its way
                place.video_id = "video_1"
            ended.wait()

    threading.Thread(target=make, daemon=True).start()
    assert submitting.wait(WAIT_S)
    assert pace.stop() == ["video_1"]
    ended.set()


def test_the_end_of_a_batch_does_not_wait_long_for_a_server_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve.client.batch.pace.LAST_ANSWER_S", 0.1)
    pace = Pace()
    with pace.place(), pace.turn():
        assert pace.stop() == []


def test_work_is_shared_and_read_no_faster_than_it_is_done() -> None:
    read: list[int] = []
    done: list[int] = []

    def items() -> Iterator[int]:
        for number in range(200):
            read.append(number)
            assert len(read) - len(done) <= 4
            yield number

    def work(take: Callable[[], int | None]) -> None:
        while (item := take()) is not None:
            done.append(item)

    share(items(), work, 4)
    assert sorted(done) == read == [*range(200)]


def test_the_first_error_ends_the_work_of_all_threads() -> None:
    ended: list[bool] = []

    def work(take: Callable[[], int | None]) -> None:
        while (item := take()) is not None:
            if item == 5:
                raise ValueError("five")
            time.sleep(0.01)
        ended.append(True)

    with pytest.raises(ValueError, match="five"):
        share(iter(range(100_000)), work, 3)
    wait_until(lambda: len(ended) == 2)
