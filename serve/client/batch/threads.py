"""Work that several threads share."""

import threading
from collections.abc import Callable, Iterator
from queue import SimpleQueue
from typing import TypeVar

T = TypeVar("T")


def share(items: Iterator[T], work: Callable[[Callable[[], T | None]], None], threads: int) -> None:
    """Run ``work`` in several threads, and wait until all have returned.

    Args:
        items: what there is to do, which is read no faster than it is done.
        work: called with a function that returns the next item; None if there is none left, or if another thread
            failed.

    Raises:
        Exception: the first one of a thread. The others may still work on their last item.
    """
    lock, ended = threading.Lock(), SimpleQueue[BaseException | None]()
    stopped = False

    def take() -> T | None:
        with lock:
            return None if stopped else next(items, None)

    def run() -> None:
        try:
            work(take)
        except BaseException as error:
            ended.put(error)
        else:
            ended.put(None)

    for _ in range(threads):  # daemons: an interrupted program does not wait for them
        threading.Thread(target=run, daemon=True).start()
    try:
        for _ in range(threads):
            if (error := ended.get()) is not None:
                raise error
    finally:
        stopped = True
