"""What a client can be told went wrong, each kind with its HTTP status."""

from typing import Any

from cosmos3_models import InvalidInput


class ServingError(Exception):
    """An answer other than success. ``message`` is written for the client: no trace, path or secret."""

    status = 500
    type = "server_error"
    code = "internal_error"

    def __init__(self, message: str, param: str | None = None, retry_after_s: float | None = None) -> None:
        super().__init__(message, param, retry_after_s)
        self.message, self.param, self.retry_after_s = message, param, retry_after_s

    def __str__(self) -> str:
        return self.message

    @property
    def headers(self) -> dict[str, str]:
        return {} if self.retry_after_s is None else {"Retry-After": f"{self.retry_after_s:.0f}"}

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


class Unauthorized(ServingError):
    status = 401
    type = "invalid_request_error"
    code = "invalid_api_key"

    @property
    def headers(self) -> dict[str, str]:
        return {"WWW-Authenticate": "Bearer"}


class NotFound(ServingError):
    status = 404
    type = "invalid_request_error"
    code = "not_found"


class MethodNotAllowed(ServingError):
    status = 405
    type = "invalid_request_error"
    code = "method_not_allowed"


class Conflict(ServingError):
    status = 409
    type = "invalid_request_error"
    code = "idempotency_key_reused"


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


class NotReady(ServingError):
    status = 503
    type = "server_error"
    code = "not_ready"


class DatabaseUnavailable(ServingError):
    status = 503
    code = "database_unavailable"


class MediaUnavailable(ServingError):
    status = 503
    code = "media_unavailable"
