"""A response to every request: errors in the one form and in the log, HEAD without a body."""

import json
import logging
from collections.abc import Mapping
from urllib.parse import quote

from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cosmos3_models.fields import expected_by_pydantic
from serve.errors import InvalidRequest, MethodNotAllowed, NotFound, NotReady, ServingError

logger = logging.getLogger("ray.serve")

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")
IS_HEAD = "cosmos3.head"  # in the scope of a HEAD request, which the routes see as a GET


class Answers:
    """Answers every request: HEAD like GET without the body, and unexpected errors with a 500."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        started = False

        async def answer(message: Message) -> None:
            nonlocal started
            started = True
            await send({**message, "body": b""} if head and "body" in message else message)

        head = scope["method"] == "HEAD"
        try:
            if not scope["query_string"].isascii():
                raise InvalidRequest("query: got a byte that is not ASCII, expected it percent-encoded")
            await self._app({**scope, "method": "GET", IS_HEAD: True} if head else scope, receive, answer)
        except Exception as error:
            if started:  # the client can learn of it only by a broken connection
                raise
            response = await answer_error(Request(scope), error)
            await response(scope, receive, answer)


async def answer_error(request: Request, error: Exception) -> Response:
    """Answer every failure in the one form. Stack traces of server errors go to the log only."""
    known = error if isinstance(error, ServingError) else _as_serving_error(request, error)
    if isinstance(known, MethodNotAllowed) and request.method == "OPTIONS":
        return Response(status_code=204, headers=known.headers)
    log_error(request.scope, known, error)
    return error_response(known)


def _as_serving_error(request: Request, error: Exception) -> ServingError:
    where = f"{request.method} {request.scope['path']}"
    if isinstance(error, RequestValidationError):
        found = error.errors()[0]
        name = str(found["loc"][-1])
        message = f"{name}: got {str(found['input'])[:80]!r}, expected {expected_by_pydantic(found['msg'])}"
        return InvalidRequest(message, name)
    if isinstance(error, ClientDisconnect):  # nobody receives this response
        return InvalidRequest("body: got a part of it, expected all, because the client closed the connection")
    if isinstance(error, HTTPException) and error.status_code == 404:
        return NotFound(f"no such route: {where}")
    if isinstance(error, HTTPException) and error.status_code == 405:
        allowed = {"Allow": ", ".join((*_allowed_methods(request), "OPTIONS"))}
        return MethodNotAllowed(f"the route does not take this method: {where}", headers=allowed)
    if isinstance(error, HTTPException) and error.status_code < 500:
        return InvalidRequest(error.detail)
    return ServingError("internal error; the log has the details under this request's id")


def _allowed_methods(request: Request) -> list[str]:
    """All methods of the path, over all its routes."""

    def taken(method: str) -> bool:
        scope = {**request.scope, "method": "GET" if method == "HEAD" else method}
        return any(route.matches(scope)[0] is Match.FULL for route in request.app.router.routes)

    return list(filter(taken, METHODS))


def error_response(error: ServingError, headers: Mapping[str, str] | None = None) -> Response:
    """The one JSON form. In ASCII, since a message may quote text that cannot be encoded."""
    body = json.dumps(error.body).encode("ascii")
    return Response(body, error.status, {**(headers or {}), **error.headers}, "application/json")


def log_error(scope: Scope, answer: ServingError, raised: BaseException) -> None:
    """Log one line for a refusal, and an error with its stack trace if the server is at fault. Serve adds the id."""
    line = f"{scope['method']} {quote(scope['path'])} {answer.status}: {answer}"
    ours = answer.status >= 500 and not isinstance(answer, NotReady)
    logger.log(logging.ERROR if ours else logging.WARNING, _printable(line), exc_info=raised if ours else None)


def _printable(text: str) -> str:
    """The text without line breaks and other characters that could forge log lines."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)
