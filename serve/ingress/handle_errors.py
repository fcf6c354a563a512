"""Errors of handle calls, for callers in other Ray jobs, which have Ray but not this package."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from ray.serve.exceptions import RayServeException

from serve.errors import ServingError

logger = logging.getLogger("ray.serve")

FIELDS = ("status", "type", "code", "param", "message", "retry_after_s")


@contextmanager
def readable_errors() -> Iterator[None]:
    """Raise every error as one of Ray's own class, which any Ray job can unpickle, with ``FIELDS`` as attributes."""
    try:
        yield
    except ServingError as error:
        raise _readable(error) from error
    except Exception as error:
        logger.exception("A handle call failed.")
        raise _readable(ServingError("internal error; the server's log has the details")) from error


def _readable(error: ServingError) -> RayServeException:
    readable = RayServeException(error.message)
    for name in FIELDS:
        setattr(readable, name, getattr(error, name))
    return readable
