"""A receiver of webhooks: a real HTTP server, in a thread, that answers by a script and notes what it got."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import openai

SECRET, OTHER_SECRET = "whsec_" + "QUJD" * 10, "whsec_" + "eHl6" * 12
SLOW, ENDLESS = "slow", "endless"
"""Answers in a script besides status codes: none until the receiver closes, and a body that never ends."""


class Received(NamedTuple):
    """One request."""

    path: str
    headers: Message
    body: bytes

    def event(self, secret: str = SECRET) -> Any:
        """The event, as OpenAI's client verifies and reads it."""
        with openai.OpenAI(api_key="unused") as client:
            return client.webhooks.unwrap(self.body, dict(self.headers.items()), secret=secret)


class Receiver:
    """Answers requests by the script, and then with 200."""

    def __init__(self, *script: int | str, port: int = 0) -> None:
        self._script = list(script)
        self.received: list[Received] = []
        self._closed = threading.Event()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length", 0)))
                receiver.received.append(Received(self.path, self.headers, body))
                with suppress(OSError):  # the sender may have gone
                    receiver._answer(self)

            do_GET = do_POST  # of whoever follows a redirect

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def wait_for(self, requests: int) -> list[Received]:
        """What was received, once it is so many requests."""
        deadline = time.monotonic() + 90
        while len(self.received) < requests:
            assert time.monotonic() < deadline, self.received
            time.sleep(0.01)
        return self.received

    def close(self) -> None:
        self._closed.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _answer(self, handler: BaseHTTPRequestHandler) -> None:
        answer = self._script.pop(0) if self._script else 200
        if answer == SLOW:
            self._closed.wait()
        handler.send_response(answer if isinstance(answer, int) else 200)
        if answer == 302:
            handler.send_header("Location", f"{self.url}/elsewhere")
        handler.end_headers()
        while answer == ENDLESS and not self._closed.is_set():
            handler.wfile.write(b"x" * 65536)


@contextmanager
def receiving(*script: int | str, port: int = 0) -> Iterator[Receiver]:
    receiver = Receiver(*script, port=port)
    try:
        yield receiver
    finally:
        receiver.close()


def webhook_args(folder: Path, *targets: str) -> dict[str, Any]:
    """Arguments of an application that may send webhooks to these targets."""
    file = folder / "webhook-secrets"
    if not file.exists():
        file.write_text(SECRET)
    return {"webhook_targets": targets, "webhook_secrets_file": str(file)}
