"""Bodies wait for the application that reads them, in front of what Serve does between the proxy and a replica."""

import asyncio
import hashlib
import os
import pickle
import signal
import socket
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from time import monotonic
from typing import Any

import httpx
import pytest
from answers import check_error
from ray.serve.context import _RequestContext, _serve_request_context
from running_server import Server
from sample_media import picture
from starlette.types import Message, Receive, Scope, Send

from serve.http.pacing import AHEAD_BYTES, EXTENSION, REPORT_BYTES, PacedBodies, ReportsReading

CHUNK = b"x" * 50_000
OURS = "cosmos3"
START = {"type": "http.response.start", "status": 200, "headers": []}


class Client:
    """Sends ``chunks`` chunks as fast as they are received, and keeps the messages of the response."""

    def __init__(self, chunks: int) -> None:
        self.left = chunks
        self.sent = 0
        self.messages: list[Message] = []

    async def receive(self) -> Message:
        if self.left == 0:
            await asyncio.Event().wait()
        await asyncio.sleep(0)
        self.left -= 1
        self.sent += len(CHUNK)
        return {"type": "http.request", "body": CHUNK, "more_body": self.left > 0}

    async def send(self, message: Message) -> None:
        self.messages.append(message)


class Reader:
    """An application that reads a body once it is let, and notes how far ahead the client was."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self.may_read = asyncio.Event()
        self.read = self.most_ahead = 0

    async def __call__(self, _: Scope, receive: Receive, send: Send) -> None:
        await self.may_read.wait()
        more = True
        while more:
            self.most_ahead = max(self.most_ahead, self._client.sent - self.read)
            message = await receive()
            self.read += len(message["body"])
            more = message["more_body"]
            for _ in range(5):  # slower than the client
                await asyncio.sleep(0)
        await send({**START})
        await send({"type": "http.response.body", "body": b""})


def served(app: Callable[[Scope, Receive, Send], Awaitable[None]], name: str) -> Any:
    """What Serve does: receive a body as fast as it comes, and call the application elsewhere."""

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        async def fetch() -> None:
            while True:
                queue.put_nowait(await receive())

        _serve_request_context.set(_RequestContext(app_name=name))
        queue: asyncio.Queue[Message] = asyncio.Queue()
        fetching = asyncio.create_task(fetch())
        await app(pickle.loads(pickle.dumps(scope)), queue.get, send)
        fetching.cancel()

    return serve


async def let_all_run() -> None:
    for _ in range(2000):
        await asyncio.sleep(0)


async def upload(proxy: PacedBodies, client: Client, reader: Reader) -> int:
    """Upload a whole body; the bytes that were received before the application began to read."""
    request = asyncio.create_task(proxy({"type": "http"}, client.receive, client.send))
    await let_all_run()
    unread = client.sent
    reader.may_read.set()
    await asyncio.wait_for(request, 30)
    assert reader.read == client.sent
    return unread


async def one_upload(proxy: PacedBodies, target: list[Any], app: Callable[[Any], Any] = ReportsReading) -> Any:
    """The reader of one upload of 200 chunks to an application, and what came before it read."""
    client = Client(200)
    reader = Reader(client)
    target[0] = app(reader)
    unread = await upload(proxy, client, reader)
    assert [message["type"] for message in client.messages] == ["http.response.start", "http.response.body"]
    assert EXTENSION not in client.messages[0]
    return reader, unread


def proxied(name: str = OURS) -> tuple[PacedBodies, list[Any]]:
    """A proxy, and the place of the application behind it."""
    target: list[Any] = [None]

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await target[0](scope, receive, send)

    return PacedBodies(served(app, name)), target


def test_a_body_waits_until_it_is_read() -> None:
    async def run() -> None:
        proxy, target = proxied()
        await one_upload(proxy, target)
        for _ in range(2):
            reader, unread = await one_upload(proxy, target)
            assert AHEAD_BYTES <= unread < AHEAD_BYTES + len(CHUNK)
            assert reader.most_ahead <= AHEAD_BYTES + REPORT_BYTES + len(CHUNK)

    asyncio.run(run())


def test_the_first_body_of_all_waits_as_soon_as_its_application_reports() -> None:
    async def run() -> None:
        proxy, target = proxied()
        client = Client(10_000)
        reader = Reader(client)
        target[0] = ReportsReading(reader)
        reader.may_read.set()
        request = asyncio.create_task(proxy({"type": "http"}, client.receive, client.send))
        await let_all_run()
        assert reader.read > 2 * AHEAD_BYTES
        assert client.sent - reader.read <= AHEAD_BYTES + REPORT_BYTES + len(CHUNK)
        request.cancel()

    asyncio.run(run())


def test_a_body_of_another_application_does_not_wait() -> None:
    async def run() -> None:
        proxy, target = proxied()
        for _ in range(2):
            _, unread = await one_upload(proxy, target, app=lambda reader: reader)
            assert unread == 200 * len(CHUNK)

    asyncio.run(run())


@pytest.mark.parametrize(("status", "waits"), [(200, False), (429, True), (503, True)])
def test_a_response_tells_whether_its_application_reports(status: int, waits: bool) -> None:
    async def without_report(_: Scope, __: Receive, send: Send) -> None:
        await send({**START, "status": status})

    async def run() -> None:
        proxy, target = proxied()
        target[0] = ReportsReading(without_report)
        await proxy({"type": "http"}, Client(0).receive, Client(0).send)
        _, unread = await one_upload(proxy, target)
        assert unread < 200 * len(CHUNK), "the start of any response has the mark"
        target[0] = without_report  # another application in its place, or an error of the proxy's own
        await proxy({"type": "http"}, Client(0).receive, Client(0).send)
        _, unread = await one_upload(proxy, target)
        assert (unread < 200 * len(CHUNK)) == waits

    asyncio.run(run())


def test_nothing_is_reported_to_a_server_that_paces_nothing_nor_of_a_small_body() -> None:
    async def run(scope: Scope, chunks: int) -> list[str]:
        client = Client(chunks)
        reader = Reader(client)
        reader.may_read.set()
        await ReportsReading(reader)(scope, client.receive, client.send)
        return [message["type"] for message in client.messages if EXTENSION not in message]

    paced = {"type": "http", "extensions": {EXTENSION: {}}}
    assert asyncio.run(run(paced, REPORT_BYTES // len(CHUNK))) == ["http.response.body"]
    for scope in ({"type": "http"}, {"type": "http", "extensions": None}):
        assert asyncio.run(run(scope, 100)) == ["http.response.start", "http.response.body"]


# ---- through Serve's own proxy


def form(data: bytes) -> tuple[bytes, bytes]:
    """The head of a request with a picture, and its body."""
    field = b'--b\r\nContent-Disposition: form-data; name="%s"%s\r\n\r\n%s\r\n'
    body = field % (b"prompt", b"", b"x") + field % (b"input_reference", b'; filename="a"', data) + b"--b--\r\n"
    head = b"POST /v1/videos/estimate HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
    head += b"Content-Type: multipart/form-data; boundary=b\r\nContent-Length: %d\r\n\r\n" % len(body)
    return head, body


@contextmanager
def connected(server: Server, request: bytes) -> Iterator[socket.socket]:
    """A connection on which ``request`` has been sent."""
    url = httpx.URL(server.url)
    with socket.create_connection((url.host, url.port or 80), timeout=60) as connection:
        connection.sendall(request)
        yield connection


def accepted(connection: socket.socket, data: bytes, seconds: float) -> int:
    """How many of these bytes the server and the operating system take in a while."""
    connection.settimeout(0.2)
    sent, end = 0, monotonic() + seconds
    while sent < len(data) and monotonic() < end:
        try:
            sent += connection.send(data[sent : sent + (1 << 20)])
        except TimeoutError:
            continue
    connection.settimeout(60)
    return sent


def test_an_upload_through_the_running_proxy_is_stored_byte_for_byte(
    server: Server, tmp_path_factory: pytest.TempPathFactory
) -> None:
    data = picture(2000, 1000)
    assert len(data) > 5 * AHEAD_BYTES
    answer = httpx.post(f"{server.url}/v1/videos", data={"prompt": "x"}, files={"input_reference": data}, timeout=60)
    assert answer.status_code == 200, answer.text
    name = hashlib.sha256(data).hexdigest()
    stored = [path for path in tmp_path_factory.getbasetemp().rglob("inputs/*") if path.name.startswith(name)]
    assert [path.read_bytes() == data for path in stored] == [True]
    httpx.delete(f"{server.url}/v1/videos/{answer.json()['id']}", timeout=60)


def test_a_client_of_the_running_proxy_waits_while_nothing_reads_its_body(server: Server) -> None:
    head, body = form(b"x" * (60 << 20))
    in_sockets = 16 << 20  # the operating system's buffers on both sides
    ingress = server.process("Ingress").pid
    os.kill(ingress, signal.SIGSTOP)
    try:
        with connected(server, head) as connection:
            sent = accepted(connection, body, 5)
            assert sent < AHEAD_BYTES + in_sockets
            os.kill(ingress, signal.SIGCONT)
            connection.sendall(body[sent:])
            assert connection.recv(100).startswith(b"HTTP/1.1 400 "), "it is no picture"
    finally:
        os.kill(ingress, signal.SIGCONT)


def test_a_client_that_is_refused_while_it_sends_gets_the_refusal_and_keeps_its_connection(server: Server) -> None:
    data = b"x" * (60 << 20)
    with httpx.Client(base_url=server.url, timeout=60) as client:
        for _ in range(2):
            files = {"input_reference": data}
            refused = client.post("/v1/videos", data={"prompt": "x"}, files=files, headers={"Host": "evil.example"})
            check_error(refused, 421, "host_not_allowed")
            assert client.get("/v1/models").status_code == 200


def test_stalled_uploads_keep_nothing_else_waiting(server: Server) -> None:
    head, body = form(picture(1000, 1000))
    stalled = [connected(server, head + body[: len(body) * 2 // 3]) for _ in range(20)]
    connections = [context.__enter__() for context in stalled]
    try:
        start = monotonic()
        assert httpx.get(f"{server.url}/v1/models", timeout=60).status_code == 200
        with connected(server, head + body) as connection:
            assert connection.recv(100).startswith(b"HTTP/1.1 200 ")
        assert monotonic() - start < 10
        connections[0].sendall(body[len(body) * 2 // 3 :])
        assert connections[0].recv(100).startswith(b"HTTP/1.1 200 "), "a client that goes on is served"
    finally:
        for context in stalled:
            context.__exit__(None, None, None)
