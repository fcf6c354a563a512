"""A receiver of OTLP over HTTP: it decodes the spans that a traced server sends."""

import gzip
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span as Message


class Span(NamedTuple):
    """One span; times are seconds since the epoch."""

    service: str
    name: str
    trace: str
    id: str
    parent: str
    start_s: float
    end_s: float
    failed: bool
    attributes: dict[str, str]


class Collector:
    """Keeps every span that arrives."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                collector.spans += _spans(ExportTraceServiceRequest.FromString(body))
                self.send_response(200)
                self.send_header("Content-Type", "application/x-protobuf")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()

    @property
    def url(self) -> str:
        """The endpoint."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def trace(self, trace: str, complete: Callable[[list[Span]], bool], timeout_s: float = 90) -> list[Span]:
        """Return the spans of a trace in order of their start, once they are complete.

        Raises:
            TimeoutError: they are not.
        """
        deadline = time.monotonic() + timeout_s
        while not complete(found := [one for one in self.spans if one.trace == trace]):
            if time.monotonic() > deadline:
                raise TimeoutError(f"the trace has {[one.name for one in found]}")
            time.sleep(0.05)
        return sorted(found, key=lambda one: one.start_s)

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@contextmanager
def collecting() -> Iterator[Collector]:
    """A collector, closed afterwards."""
    collector = Collector()
    try:
        yield collector
    finally:
        collector.close()


def _spans(request: ExportTraceServiceRequest) -> Iterator[Span]:
    for resource in request.resource_spans:
        service = _texts(resource.resource.attributes).get("service.name", "")
        for scope in resource.scope_spans:
            for span in scope.spans:
                yield _span(service, span)


def _span(service: str, span: Message) -> Span:
    ids = (span.trace_id.hex(), span.span_id.hex(), span.parent_span_id.hex())
    times = (span.start_time_unix_nano / 1e9, span.end_time_unix_nano / 1e9)
    failed = span.status.code == span.status.STATUS_CODE_ERROR
    return Span(service, span.name, *ids, *times, failed, _texts(span.attributes))


def _texts(attributes: Iterable[KeyValue]) -> dict[str, str]:
    return {one.key: str(getattr(one.value, one.value.WhichOneof("value") or "string_value")) for one in attributes}
