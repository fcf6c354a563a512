"""A chat server with OpenAI's API in a thread, which answers as its script says."""

import json
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from pydantic import BaseModel

from cosmos3_models.text.caption import IMAGE_CAPTION, VIDEO_CAPTION

Answer = tuple[int, Any]
"""A status, and a body: bytes, or what becomes JSON."""

Behaviour = Callable[["FakeChat", dict[str, Any]], Answer | None]
"""The answer to a request; None breaks the connection off."""


def _filled(schema: dict[str, Any], whole: dict[str, Any], text: str) -> Any:
    """A value of a JSON schema in which every text is the same."""
    if "$ref" in schema:
        schema = whole["$defs"][schema["$ref"].rpartition("/")[2]]
    match schema["type"]:
        case "object":
            return {name: _filled(field, whole, text) for name, field in schema["properties"].items()}
        case "array":
            return [_filled(schema["items"], whole, text)]
        case kind:
            return {"string": text, "integer": 1}[kind]


def caption(text: str = "a red ball", model: type[BaseModel] = VIDEO_CAPTION) -> dict[str, Any]:
    """A caption in which every text is the same."""
    schema = model.model_json_schema()
    made: dict[str, Any] = _filled(schema, schema, text)
    return made


def completion(content: Any, **message: Any) -> dict[str, Any]:
    """The body of a chat completion."""
    return {"choices": [{"index": 0, "message": {"role": "assistant", "content": content} | message}]}


def well(_: "FakeChat", request: dict[str, Any]) -> Answer:
    """A caption in the form that the instruction shows, whose texts are the request's prompt."""
    instruction, user = (message["content"] for message in request["messages"])
    told = json.loads(user if isinstance(user, str) else user[-1]["text"])
    model = IMAGE_CAPTION if "comprehensive_t2i_caption" in instruction else VIDEO_CAPTION
    return 200, completion(json.dumps(caption(f"upsampled {told['request']}", model)))


def saying(content: Any, **message: Any) -> Behaviour:
    """An answer with this text."""
    return lambda *_: (200, completion(content, **message))


def answering(status: int, body: Any = b"") -> Behaviour:
    return lambda *_: (status, body)


def hanging_up(*_: Any) -> None:
    return None


def silent(server: "FakeChat", _: dict[str, Any]) -> None:
    """No answer before the server ends."""
    server.ended.wait()


def knowing_only(*fields: str) -> Behaviour:
    """A server that refuses a request with any other field."""

    def behave(server: "FakeChat", request: dict[str, Any]) -> Answer:
        unknown = set(request) - set(fields)
        return (400, {"error": {"message": f"unknown: {sorted(unknown)}"}}) if unknown else well(server, request)

    return behave


class FakeChat:
    """The server.

    Attributes:
        script: what it does with each request in order; the last one repeats.
        requests: the bodies that it got; ``keys`` what came with them as Authorization.
        headers: further ones of its answers.
    """

    def __init__(self, *script: Behaviour) -> None:
        self.script = list(script or (well,))
        self.requests: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.headers: dict[str, str] = {}
        self.ended = threading.Event()
        self.url = ""

    @property
    def prompts(self) -> Sequence[str]:
        """The prompts that it was asked about."""
        users = (request["messages"][1]["content"] for request in self.requests)
        return [json.loads(user if isinstance(user, str) else user[-1]["text"])["request"] for user in users]

    def answer(self, path: str, request: dict[str, Any], key: str | None) -> Answer | None:
        self.requests.append(request)
        self.keys.append(key)
        behave = self.script.pop(0) if len(self.script) > 1 else self.script[0]
        return behave(self, request) if path == "/v1/chat/completions" else (404, b"")


@contextmanager
def chatting(*script: Behaviour) -> Iterator[FakeChat]:
    """A server that follows a script, on a free port."""
    chat = FakeChat(*script)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            answer = chat.answer(self.path, body, self.headers.get("Authorization"))
            if answer is None:
                self.connection.close()
                return
            status, said = answer
            data = said if isinstance(said, bytes) else json.dumps(said).encode()
            self.send_response(status)
            for name, value in (chat.headers | {"Content-Length": str(len(data))}).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: Any) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: Any) -> None:  # the client had enough
            pass

    with Server(("127.0.0.1", 0), Handler) as server:
        chat.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield chat
        finally:
            chat.ended.set()
            server.shutdown()
            thread.join()
