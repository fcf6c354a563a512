"""Bodies that arrive no faster than the application reads them.

Serve's proxy receives a body as fast as the client sends it, a replica fetches it as fast, and both keep in memory what
the application has not read yet. Here the replica reports to the proxy how much the application has read, in messages
that take the way of the response, and the proxy stops receiving a body that is too far ahead. TCP then makes the client
wait. Nothing of Serve is replaced: the proxy passes on messages of any type, and announces itself by an extension of
ASGI, without which a replica reports nothing. To the proxy a report is the start of a response, so it gives no answer
of its own from then on; ``OneErrorForm`` does.
"""

import asyncio

from ray.serve.context import _get_serve_request_context
from starlette.types import ASGIApp, Message, Receive, Scope, Send

EXTENSION = "cosmos3.paced_body"
"""In the extensions of a request whose proxy paces it, and in the start of a response whose application reports."""

REPORT = "cosmos3.body.read"
"""The type of a report."""

AHEAD_BYTES = 1 << 19  # received and not reported as read, from which on a body must wait
REPORT_BYTES = AHEAD_BYTES // 4  # a report costs Serve as much as a chunk of the body


class PacedBodies:
    """The half in the proxy: lets a body of an application that reports what it reads be ``AHEAD_BYTES`` ahead.

    A cluster may have other applications, which report nothing and must not wait for ever. Every response of an
    application tells whether it reports; until the first one, its bodies do not wait.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._reporting: set[str] = set()  # names of applications

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            scope.setdefault("extensions", {})[EXTENSION] = {}
            body = _PacedBody(receive, send, self._reporting)
            receive, send = body.receive, body.send
        await self._app(scope, receive, send)


class _PacedBody:
    """One request."""

    def __init__(self, receive: Receive, send: Send, reporting: set[str]) -> None:
        self._receive, self._send, self._reporting = receive, send, reporting
        self._ahead = 0
        self._reported = asyncio.Event()

    async def receive(self) -> Message:
        """Receive the next message from the client, once the application has read enough of the earlier ones."""
        while self._ahead >= AHEAD_BYTES and _application() in self._reporting:
            self._reported.clear()
            await self._reported.wait()
        message = await self._receive()
        self._ahead += len(message.get("body", b""))
        return message

    async def send(self, message: Message) -> None:
        """Send a message to the client, unless it is a report."""
        if message["type"] == REPORT:
            self._ahead -= message["bytes"]
            self._reporting.add(_application())
            self._reported.set()
            return
        if message["type"] == "http.response.start":
            if message.pop(EXTENSION, False):
                self._reporting.add(_application())
            elif message["status"] < 400:  # an error may be the proxy's own
                self._reporting.discard(_application())
        await self._send(message)


def _application() -> str:
    """The name of the application to which the proxy has routed this request."""
    name: str = _get_serve_request_context().app_name
    return name


class ReportsReading:
    """The half in the replica: reports what the application has read of a body."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if EXTENSION not in (scope.get("extensions") or {}):
            return await self._app(scope, receive, send)
        unreported = 0

        async def reporting_receive() -> Message:
            nonlocal unreported
            if unreported >= REPORT_BYTES:  # and the application wants more
                unreported, read = 0, unreported
                await send({"type": REPORT, "bytes": read})
            message = await receive()
            unreported += len(message.get("body", b""))
            return message

        async def marked_send(message: Message) -> None:
            await send({**message, EXTENSION: True} if message["type"] == "http.response.start" else message)

        await self._app(scope, reporting_receive, marked_send)
