"""What a client can be told went wrong, each kind with its HTTP status."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from cosmos3_models import InvalidInput


class ServingError(Exception):
    """An answer other than success. ``message`` is written for the client: no trace, path or secret.

    Args:
        headers: further ones of the answer.
    """

    status = 500
    type = "server_error"
    code = "internal_error"

    def __init__(
        self,
        message: str,
        param: str | None = None,
        retry_after_s: float | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message, param, retry_after_s, headers)
        self.message, self.param, self.retry_after_s = message, param, retry_after_s
        self._headers = headers or {}

    def __str__(self) -> str:
        return self.message

    @property
    def headers(self) -> dict[str, str]:
        wait = {} if self.retry_after_s is None else {"Retry-After": f"{self.retry_after_s:.0f}"}
        return self._headers | wait

    @property
    def body(self) -> dict[str, Any]:
        """The one JSON form of every error."""
        return {
            "error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code},
        }


class InvalidRequest(ServingError):
    status = 400
    type = "invalid_request_error"
    code = "invalid_value"

    @classmethod
    def of(cls, error: InvalidInput) -> "InvalidRequest":
        return cls(str(error), error.param)


class ContentRefused(ServingError):
    """The operator's guard refuses a prompt, or the frames that were made of it."""

    status = 400
    type = "invalid_request_error"
    code = "content_policy_violation"


@contextmanager
def invalid_input_refused() -> Iterator[None]:
    """Raise what the model refuses as ``InvalidRequest``."""
    try:
        yield
    except InvalidInput as error:
        raise InvalidRequest.of(error) from None


class Unauthorized(ServingError):
    status = 401
    type = "invalid_request_error"
    code = "invalid_api_key"

    @property
    def headers(self) -> dict[str, str]:
        return {"WWW-Authenticate": "Bearer"}


class OriginNotAllowed(ServingError):
    """The request comes from a web page of another origin."""

    status = 403
    type = "invalid_request_error"
    code = "origin_not_allowed"


class HostNotAllowed(ServingError):
    """The URL names a host that this server does not answer for."""

    status = 421
    type = "invalid_request_error"
    code = "host_not_allowed"


class NotFound(ServingError):
    status = 404
    type = "invalid_request_error"
    code = "not_found"


class MethodNotAllowed(ServingError):
    status = 405
    type = "invalid_request_error"
    code = "method_not_allowed"


class TimedOut(ServingError):
    status = 408
    code = "timed_out"


class Conflict(ServingError):
    status = 409
    type = "invalid_request_error"
    code = "idempotency_key_reused"


class PreconditionFailed(ServingError):
    status = 412
    type = "invalid_request_error"
    code = "precondition_failed"


class RangeNotSatisfiable(ServingError):
    status = 416
    type = "invalid_request_error"
    code = "range_not_satisfiable"


class TooLarge(ServingError):
    status = 413
    type = "invalid_request_error"
    code = "too_large"


class QueueFull(ServingError):
    status = 429
    type = "rate_limit_error"
    code = "queue_full"


class StageFailed(ServingError):
    """A stage raised, or its replicas died more often than is retried."""

    code = "stage_failed"


class InputLost(ServingError):
    """The picture or clip of a stored job is gone from the media store, or damaged."""

    code = "input_lost"


class PromptUpsamplingFailed(ServingError):
    """The prompt could not be rewritten, and the request requires it."""

    status = 502
    code = "prompt_upsampling_failed"


class NotReady(ServingError):
    status = 503
    type = "server_error"
    code = "not_ready"


class GuardFailed(ServingError):
    """The operator's guard failed, so that it permitted nothing."""

    status = 503
    code = "guard_failed"


class DatabaseUnavailable(ServingError):
    status = 503
    code = "database_unavailable"


class MediaUnavailable(ServingError):
    status = 503
    code = "media_unavailable"
