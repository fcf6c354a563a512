"""Spans of jobs and requests, with an exporter that keeps them in this process."""

import asyncio
import contextvars
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fakes import FakeGraph
from job_runners import DECODING, DENOISING, FINISHED, ONE_STEP, with_runner
from job_tables import read, submitted
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from ray.serve._private import constants
from ray.serve.schema import ServeDeploySchema

from benchmarks.otlp import collecting
from serve import tracing
from serve.cli.launch import _controller_options
from serve.errors import QueueFull, StageFailed
from serve.graph.clock import Clock
from serve.graph.streaming_call import StreamingCall
from serve.jobs import runner as runner_module
from serve.jobs.media_store import MediaStore
from serve.jobs.runner import JobRunner
from serve.jobs.table import JobTable

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
PARENT = f"00-{TRACE}-{SPAN}-01"


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemorySpanExporter]:
    exporter, provider = InMemorySpanExporter(), TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(tracing, "_tracer", provider.get_tracer("test"))
    yield exporter
    provider.shutdown()


def named(spans: InMemorySpanExporter, name: str) -> list[ReadableSpan]:
    return [span for span in spans.get_finished_spans() if span.name == name]


def ids(span: ReadableSpan) -> tuple[str, str | None]:
    """The trace of a span, and its parent."""
    assert span.context is not None
    return f"{span.context.trace_id:032x}", f"{span.parent.span_id:016x}" if span.parent else None


def seconds(span: ReadableSpan) -> float:
    return ((span.end_time or 0) - (span.start_time or 0)) / 1e9


def test_every_attempt_of_a_job_is_in_the_trace_of_its_request(
    tmp_path: Path, spans: InMemorySpanExporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner_module, "RELEASE_DELAY_S", 0.0)

    async def scenario(runner: JobRunner, table: JobTable, _: MediaStore) -> None:
        job = await submitted(table, ONE_STEP._replace(traceparent=PARENT, request_id="r-1"))
        for script in ((DENOISING, QueueFull("full")), (DENOISING, DECODING, FINISHED)):
            graph: Any = FakeGraph(*script)
            runner._graph = graph
            await runner.work()
        assert (await read(table, job)).status == "completed"
        lost, made = named(spans, "job")
        assert [ids(one) for one in (lost, made)] == [(TRACE, SPAN)] * 2
        assert [one.status.is_ok for one in (lost, made)] == [False, True]
        for attempt, one in enumerate((lost, made), 1):
            assert dict(one.attributes or {}) == {"video_id": job.id, "request_id": "r-1", "attempt": attempt}
        (waited,), (stored,) = named(spans, "job queue"), named(spans, "storing")
        assert (waited.parent, stored.parent) == (lost.context, made.context)
        for part in (waited, stored):
            assert {"video_id": job.id, "request_id": "r-1"}.items() <= dict(part.attributes or {}).items()

    with_runner(tmp_path, scenario)


def test_a_job_that_nobody_traced_begins_a_trace(tmp_path: Path, spans: InMemorySpanExporter) -> None:
    async def scenario(runner: JobRunner, table: JobTable, _: MediaStore) -> None:
        graph: Any = FakeGraph(DENOISING, StageFailed("it failed"))
        runner._graph = graph
        await submitted(table, ONE_STEP)
        await runner.work()
        (job,) = named(spans, "job")
        assert job.parent is None
        assert not job.status.is_ok
        assert "it failed" in str(job.status.description)

    with_runner(tmp_path, scenario)


def test_a_request_has_a_span_for_each_stage_and_for_eight_ranges_of_steps(spans: InMemorySpanExporter) -> None:
    async def scene() -> None:
        with tracing.span("request", video_id="v", none=None):
            clock = Clock()
            clock.lap("tokenizer")
            for step in range(36):
                if step == 0:
                    clock.lap("queue")
                clock.progress("denoiser", step, 35)
            clock.lap("denoiser")
            clock.progress("decoders", 0, 1)
            assert tracing.traceparent() is not None

    asyncio.run(scene())
    made = [span.name for span in spans.get_finished_spans()]
    ranges = [f"steps {first} to {min(first + 4, 35)}" for first in range(1, 36, 5)]
    assert made == ["tokenizer", "queue", *ranges, "denoiser", "request"]
    *parts, request = spans.get_finished_spans()
    assert all(part.parent == request.context for part in parts)
    assert all((part.attributes or {})["video_id"] == "v" for part in parts)
    assert (parts[2].attributes or {})["last_step"] == 5
    within = sum(seconds(part) for part in parts if part.name.startswith("steps"))
    assert within <= seconds(parts[-1]) + 0.001


@pytest.mark.parametrize("steps", [1, 2, 7, 8, 9, 200])
def test_the_ranges_of_steps_have_neither_gaps_nor_overlaps(spans: InMemorySpanExporter, steps: int) -> None:
    clock = Clock()
    for step in range(steps + 1):
        clock.progress("denoiser", step, steps)
    covered = [
        step
        for span in spans.get_finished_spans()
        for step in range((span.attributes or {})["first_step"], (span.attributes or {})["last_step"] + 1)  # type: ignore[call-overload,operator]
    ]
    assert covered == [*range(1, steps + 1)]
    assert len(spans.get_finished_spans()) <= 8


@pytest.mark.usefixtures("spans")
def test_a_streaming_call_carries_the_span_and_nothing_else_of_its_request() -> None:
    request = contextvars.ContextVar("request", default="none")

    class Response:
        def __init__(self) -> None:
            self.made_in = (tracing.traceparent(), request.get())

        async def _to_object_ref_gen(self) -> None:
            pass

    async def scene() -> None:
        request.set("this one")
        with tracing.span("request"):
            response: Any = Response
            made: Any = StreamingCall(response)._response
            assert made.made_in == (tracing.traceparent(), "none")
            assert made.made_in[0] is not None

    asyncio.run(scene())


def test_without_a_tracer_nothing_is_stored_and_nothing_sent() -> None:
    with tracing.span("request", video_id="v"):
        assert tracing.traceparent() is None


def config(**fields: Any) -> ServeDeploySchema:
    return ServeDeploySchema.model_validate({"applications": [], **fields})


def variables(config: ServeDeploySchema) -> dict[str, str]:
    """What Serve's controller and all that it starts get."""
    return (_controller_options(config).runtime_env or {}).get("env_vars", {})


def test_an_endpoint_in_the_environment_or_in_the_file_turns_tracing_on(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in tracing.ENDPOINTS:
        monkeypatch.delenv(name, raising=False)
    assert set(tracing.TRACED) <= set(vars(constants)), "Serve reads them"
    proxy = {"RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "serve.http.proxy:middleware"}
    of_file = {"controller_options": {"runtime_env": {"env_vars": proxy}}}
    endpoint = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318"}
    with_endpoint = {"controller_options": {"runtime_env": {"env_vars": proxy | endpoint}}}
    assert (variables(config()), variables(config(**of_file))) == ({}, proxy)
    assert variables(config(**with_endpoint)) == proxy | endpoint | tracing.TRACED
    for name in tracing.ENDPOINTS:
        with monkeypatch.context() as patch:
            patch.setenv(name, "http://collector:4318")
            assert variables(config(**of_file)) == proxy | tracing.TRACED
            assert variables(config(**of_file, tracing_config={"enabled": False})) == proxy, "the file's word counts"
            rare = {"RAY_SERVE_TRACING_SAMPLING_RATIO": "0.1"}
            few = {"controller_options": {"runtime_env": {"env_vars": rare}}}
            assert variables(config(**few)) == tracing.TRACED | rare


def test_an_endpoint_without_the_extra_is_a_line_and_no_failure(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4318")
    monkeypatch.setattr("serve.cli.launch.find_spec", lambda _: None)
    assert variables(config()) == {}
    assert "pip install 'cosmos3-serve[tracing]'" in capsys.readouterr().out


def test_the_exporter_sends_what_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    with collecting() as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
        monkeypatch.delenv("OTEL_SERVICE_NAME", raising=False)
        (processor,) = tracing.otlp()
        provider = TracerProvider(shutdown_on_exit=False)
        provider.add_span_processor(processor)
        monkeypatch.setattr(tracing, "_tracer", provider.get_tracer("test"))
        with tracing.span("job", PARENT, video_id="v"):
            pass
        provider.shutdown()
        (span,) = collector.spans
    assert (span.service, span.name, span.trace, span.parent) == ("cosmos3", "job", TRACE, SPAN)
    assert span.attributes == {"video_id": "v"}
