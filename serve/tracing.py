"""Spans of OpenTelemetry, beside those of Ray Serve; unless Serve traces, they are no operations."""

import contextvars
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from types import MappingProxyType
from typing import TYPE_CHECKING

from opentelemetry import trace
from opentelemetry.context import attach, get_current
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import SpanProcessor

ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
TRACED = {"RAY_SERVE_TRACING_EXPORTER_IMPORT_PATH": "serve.tracing:otlp", "RAY_SERVE_TRACING_SAMPLING_RATIO": "1"}
"""Variables by which Serve traces every request that arrives without a decision whether to trace it."""

Attributes = Mapping[str, str | int]

_tracer = trace.get_tracer("cosmos3")
_propagator = TraceContextTextMapPropagator()
_about: ContextVar[Attributes] = ContextVar("about", default=MappingProxyType({}))


def otlp() -> "list[SpanProcessor]":
    """Return what sends spans by OTLP over HTTP, as the variables ``OTEL_EXPORTER_OTLP_*`` say.

    Serve calls it in each process of a traced server.
    """
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    os.environ.setdefault("OTEL_SERVICE_NAME", "cosmos3")  # read by the provider, which Serve makes next
    return [BatchSpanProcessor(OTLPSpanExporter())]


def traceparent() -> str | None:
    """Return the current span as W3C's header names it; None if nothing is traced."""
    carrier: dict[str, str] = {}
    _propagator.inject(carrier)
    return carrier.get("traceparent")


def own_context() -> contextvars.Context:
    """Return a context that has nothing of the current one but its span."""
    context = contextvars.Context()
    context.run(attach, get_current())
    return context


@contextmanager
def span(name: str, parent: str | None = None, **attributes: str | int | None) -> Iterator[None]:
    """Make a span of a block, below which all spans of the block are. An exception that leaves the block marks it.

    Args:
        parent: as ``traceparent`` returned it; None: the current span.
        attributes: of this span and of those below it in this process.
    """
    context = None if parent is None else _propagator.extract({"traceparent": parent})
    given = {key: value for key, value in attributes.items() if value is not None}
    token = _about.set({**_about.get(), **given})
    try:
        with _tracer.start_as_current_span(name, context, attributes=_about.get()):
            yield
    finally:
        _about.reset(token)


def past(name: str, seconds: float, **attributes: str | int) -> None:
    """Make a span of the last ``seconds``."""
    now = time.time_ns()
    start = now - max(0, round(seconds * 1e9))
    _tracer.start_span(name, start_time=start, attributes={**_about.get(), **attributes}).end(now)
