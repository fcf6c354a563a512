"""What Ray Serve's proxy does for us: its own HTTP errors in the one error form, and bodies at the application's pace.

Serve's proxy answers by itself before a request reaches the ingress, or if the ingress dies: in plain text, or not at
all. It applies the middleware that ``RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH`` names; deploy.yaml sets it.
"""

import asyncio
import logging
import uuid
from typing import Any

from ray.serve.context import _get_global_client
from ray.serve.schema import ServeInstanceDetails
from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.errors import InvalidRequest, NotReady, QueueFull, ServingError, TimedOut
from serve.http import health
from serve.http.answers import error_response
from serve.http.health import Look, not_ready
from serve.http.pacing import PacedBodies

logger = logging.getLogger("ray.serve")

RETRY_S = 1
HEALTH = "/health"  # of an application without a route prefix


def middleware() -> list[Middleware]:
    """The proxy's callback."""
    return [Middleware(PacedBodies), Middleware(OneErrorForm)]  # the last one is the outermost


class OneErrorForm:
    """Replaces the proxy's own errors; responses of applications pass unchanged."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._look = Look("Serve's controller", _unready_deployments)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        if scope["path"] == HEALTH and (missing := await self._look.unready()):
            # Serve would hold the request until an ingress runs.
            request_id = {"X-Request-ID": Headers(scope=scope).get("x-request-id") or str(uuid.uuid4())}
            return await error_response(not_ready(missing), request_id)(scope, receive, send)
        exchange = _Exchange(send)
        try:
            await self._app(scope, receive, exchange.send)
        except Exception as error:
            if exchange.started:
                raise
            if isinstance(error, UnicodeDecodeError):  # the proxy reads some headers as UTF-8
                exchange.replacement = InvalidRequest("got a header that is not UTF-8, expected UTF-8 in x- headers")
            else:
                logger.exception("Serve's proxy failed on a request.")
        if not exchange.started:
            # The request's headers contain its id by now, from the client or from Serve.
            headers = {"X-Request-ID": Headers(scope=scope).get("x-request-id", "")} | exchange.wait
            await error_response(exchange.replacement or _lost(), headers)(scope, receive, send)


async def _unready_deployments() -> list[str]:
    """The unready deployments of the application at ``/``, or of those whose prefix is not known yet."""
    client = await asyncio.to_thread(_get_global_client)
    details = ServeInstanceDetails(**await asyncio.to_thread(client.get_serve_details))
    routes = {name: application.route_prefix for name, application in details.applications.items()}
    if not routes:
        return [health.GRAPH]
    served = [name for name, route in routes.items() if route == "/"] or [
        name for name, route in routes.items() if route is None
    ]
    applications = details._get_status().applications
    return [what for name in served for what in health.public(health.unready_deployments(applications[name]))]


class _Exchange:
    """One response in progress: whether it has started, or the error that replaces it."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.started = False
        self.replacement: ServingError | None = None
        self.wait: dict[str, str] = {}

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.replacement = _own_error(message)
            if retry_after := Headers(raw=message["headers"]).get("retry-after"):
                self.wait = {"Retry-After": retry_after}
        if self.replacement is None:
            self.started = True
            await self._send(message)


def _own_error(start: Message) -> ServingError | None:
    """The replacement of the proxy's own error: plain text without a length, which no application's framework sends."""
    headers = Headers(raw=start["headers"])
    if not headers.get("content-type", "").startswith("text/plain") or "content-length" in headers:
        return None
    answers: dict[int, Any] = {404: _no_application, 408: _timed_out, 429: _queue_full, 503: _unavailable}
    make = answers.get(start["status"])
    return None if make is None else make()


def _no_application() -> ServingError:
    # Not 404, which would look like a lost video: while a server starts, no path is known.
    return NotReady("no application serves this path, or does not yet; try again", retry_after_s=RETRY_S)


def _timed_out() -> ServingError:
    return TimedOut("the request took longer than request_timeout_s in deploy.yaml")


def _queue_full() -> ServingError:
    return QueueFull("the server has as many waiting requests as it accepts; try again later")


def _unavailable() -> ServingError:
    return NotReady("the application cannot take requests; try again later")


def _lost() -> ServingError:
    message = (
        "the process that handled this request ended before it answered; the request may or may not have been executed"
    )
    return NotReady(message, retry_after_s=RETRY_S)
