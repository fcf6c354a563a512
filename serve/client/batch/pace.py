"""How many videos of a batch are on the server at a time: enough that no denoiser waits, and no more than it takes."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from serve.client.videos import Full, RemoteError

MOST = 64  # each follows its events, of which an ingress has 192 streams
FIRST_AHEAD = 4
LAST_ANSWER_S = 10.0  # for the server to name the video that is being submitted when the batch ends


class Stopped(Exception):
    """The batch is ending."""


class Place:
    """A video's place on the server.

    Attributes:
        video_id: once the server has named it.
        waiting: whether it has not started.
    """

    def __init__(self, pace: "Pace") -> None:
        self._pace = pace
        self.video_id: str | None = None
        self.waiting = True

    def saw(self, event: dict[str, Any]) -> None:
        """Take an event of the video."""
        self._pace.saw(self, waiting=event["type"] == "queued")


class Pace:
    """Lets videos into the server's queue.

    A few wait there ahead of those that are being made. If one starts and none is left, twice as many wait from then
    on; if the server is full, no more than it took.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._ahead = FIRST_AHEAD
        self._places: set[Place] = set()
        self._stopped = False
        self._submitting = threading.Lock()

    @contextmanager
    def place(self) -> Iterator[Place]:
        """Wait for a place, and hold it.

        Raises:
            Stopped: the batch ends.
        """
        place = Place(self)
        with self._changed:
            self._changed.wait_for(lambda: self._stopped or self._has_room())
            self._check()
            self._places.add(place)
        try:
            yield place
        finally:
            with self._changed:
                self._places.discard(place)
                self._changed.notify_all()

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Wait for the turn to submit. One at a time does, so that a full server refuses one request and not many.

        Raises:
            Stopped: the batch ends.
        """
        with self._submitting:
            with self._changed:
                self._check()
            yield

    def saw(self, place: Place, waiting: bool) -> None:
        """Note whether the video at a place still waits."""
        with self._changed:
            started, place.waiting = place.waiting and not waiting, waiting
            if started:
                if not self._waiting():
                    self._ahead = min(2 * self._ahead, MOST)
                self._changed.notify_all()

    def refused(self, error: RemoteError) -> None:
        """Wait until a refused submission may be repeated, at the latest as long as the server said.

        Raises:
            Stopped: the batch ends.
        """
        with self._changed:
            if isinstance(error, Full):
                self._ahead = max(1, sum(place.waiting and place.video_id is not None for place in self._places))
            self._check()
            self._changed.wait(error.wait_s)
            self._check()

    def stop(self) -> list[str]:
        """End the batch; the videos that the server has not started."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        if self._submitting.acquire(timeout=LAST_ANSWER_S):
            self._submitting.release()
        with self._changed:
            return [place.video_id for place in self._places if place.waiting and place.video_id]

    def _has_room(self) -> bool:
        return self._waiting() < self._ahead and len(self._places) < MOST

    def _waiting(self) -> int:
        return sum(place.waiting for place in self._places)

    def _check(self) -> None:
        if self._stopped:
            raise Stopped
