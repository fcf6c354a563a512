"""No request whatsoever is answered with a 5xx, or with an error that is not in the one form.

Requests go straight to the ASGI application, so that nothing on the way can make them decent.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import unquote

import pytest
from hypothesis import given, settings
from hypothesis.strategies import SearchStrategy
from local_api import LocalClient, local_client
from raw_requests import FUZZED, KEY, VIDEO, Raw, any_request, any_video, check_form

from serve.http.access import Access

ACCESS = Access(api_keys=(KEY,), allowed_hosts=("*.example.com",), allowed_origins=("https://example.com",))


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalClient]:
    with local_client(tmp_path_factory.mktemp("fuzzed"), ACCESS) as opened:
        opened.headers["authorization"] = f"Bearer {KEY}"
        yield opened


class Sender:
    """Sends raw requests, and checks the answers."""

    def __init__(self, client: LocalClient) -> None:
        self._client = client
        self.answers: Counter[int] = Counter()
        self.video = self._finished()

    def _finished(self) -> str:
        self._client.submit()
        video: str = self._client.call(self._client.service.finish)
        return video

    def check(self, request: Raw) -> None:
        """Send it and check the answer."""
        status, headers, body = self._client.call(self._answer, request)
        self.answers[status] += 1
        check_form(request.method, status, headers.get(b"content-type", b"").decode(), body)
        if status == 200 and request.method == "DELETE":
            self.video = self._finished()
        if status == 200 and request.method == "POST" and headers[b"content-type"] == b"application/json":
            self._remove(json.loads(body))

    def _remove(self, answer: dict[str, Any]) -> None:
        """Delete what was stored: an estimate is not."""
        if answer["object"] == "video":
            self._client.call(self._client.service.videos.delete, answer["id"])

    async def _answer(self, request: Raw) -> tuple[int, dict[bytes, bytes], bytes]:
        messages, pieces = [], list(request.body)
        raw_path, _, query = request.target.replace(VIDEO.encode(), self.video.encode()).partition(b"?")

        async def receive() -> dict[str, Any]:
            if not request.complete and len(pieces) < 2:
                return {"type": "http.disconnect"}
            piece = pieces.pop(0)
            return {"type": "http.request", "body": piece, "more_body": bool(pieces) or not request.complete}

        async def send(message: Any) -> None:
            messages.append(message)

        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.4"},
            "http_version": "1.1",
            "method": request.method,
            "scheme": "http",
            "path": unquote(raw_path.decode("latin-1")),
            "raw_path": raw_path,
            "query_string": query,
            "root_path": "",
            "headers": request.headers,
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 8000),
            "state": {},
        }
        await self._client.app(scope, receive, send)
        start, *bodies = messages
        return start["status"], dict(start["headers"]), b"".join(part.get("body", b"") for part in bodies)


@pytest.mark.parametrize(
    ("kind", "requests", "count"),
    [("routes", any_request(), 500), ("bodies", any_video(), 1000)],  # a body costs a third of a whole request
    ids=["routes", "bodies"],
)
def test_no_request_makes_the_server_fail_or_answer_in_another_form(
    client: LocalClient,
    kind: str,
    requests: SearchStrategy[Raw],
    count: int,
    record_property: Callable[[str, object], None],
) -> None:
    sender = Sender(client)

    @settings(FUZZED, max_examples=count)
    @given(requests)
    def fuzz(request: Raw) -> None:
        sender.check(request)

    fuzz()
    assert sender.answers.total() >= count / 2
    assert {200, 400} <= set(sender.answers)
    record_property(f"fuzzed {kind}", {"requests": sender.answers.total(), **dict(sorted(sender.answers.items()))})
