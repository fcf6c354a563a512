"""Actions on the job table and the media store that are repeated while these are out of reach."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from itertools import chain, repeat
from typing import TypeVar

from serve.errors import DatabaseUnavailable, MediaUnavailable

T = TypeVar("T")

logger = logging.getLogger("ray.serve")

DATABASE_WAIT_S = 1.0
STORE_WAITS_S = (0.5, 1, 2, 4, 8, 15)  # between attempts on the media store; the last one repeats


async def persisted(write: Callable[[], Awaitable[T]]) -> T:
    """Return the result of a write, repeated until the database is available."""
    while True:
        try:
            return await write()
        except DatabaseUnavailable:
            logger.warning("The job table cannot be reached; retrying in %s s.", DATABASE_WAIT_S, exc_info=True)
            await asyncio.sleep(DATABASE_WAIT_S)


async def reached(action: Callable[[], Awaitable[T]]) -> T:
    """Return the result of an action on the media store, however often it refuses: the job's deadline ends this."""
    for wait_s in chain(STORE_WAITS_S, repeat(STORE_WAITS_S[-1])):
        try:
            return await action()
        except MediaUnavailable:
            logger.warning(f"The media store does not answer; retrying in {wait_s} s.", exc_info=True)
            await asyncio.sleep(wait_s)
    raise AssertionError("the last wait repeats")


async def forever(action: Callable[[], Awaitable[None]], period_s: float) -> None:
    """Perform an action of the upkeep again and again."""
    while True:
        await asyncio.sleep(period_s)
        await logged(action)


async def logged(action: Callable[[], Awaitable[None]]) -> None:
    """Perform an action of the upkeep, which the next period repeats if it fails."""
    try:
        await action()
    except Exception:
        logger.warning("Upkeep of the jobs failed.", exc_info=True)
