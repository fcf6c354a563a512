"""Whatever a client sends, the answer is one that the served OpenAPI document promises, and never a 5xx.

``test_fuzz`` sends many more requests to the routes alone; here they pass Ray Serve and its proxy.
"""

import re
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from answers import raw
from fakes import fake_application, picklable
from hypothesis import given, settings
from hypothesis import strategies as st
from raw_requests import FUZZED, Raw, any_request, any_video, check_form
from ray import serve
from running_server import Server, program

from serve.app import AppArgs

CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"


@pytest.fixture(scope="module")
def url(server: Server, tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An application whose stages take no time, and which makes small videos only."""
    folder = tmp_path_factory.mktemp("fuzzed")
    args = AppArgs(checkpoint=str(tiny_checkpoint), data_dir=str(folder), max_pixel_frames=64 * 64 * 9)
    with picklable():
        serve.run(fake_application(args, 0), name="fuzzed", route_prefix="/fuzzed")
        yield f"{server.url}/fuzzed"
        serve.delete("fuzzed")


def test_no_request_gets_an_answer_that_the_document_does_not_promise(
    url: str, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    command = [program("schemathesis"), "run", f"{url}/openapi.json", "--checks", CHECKS, "--no-color"]
    options = ["--max-examples", "10", "--seed", "1", "--request-timeout", "60", "--warnings", "off"]
    done = subprocess.run([*command, *options], cwd=tmp_path, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert re.search(r"Selected: (\d+)/\1\b", done.stdout)
    cases = re.search(r"(\d+) generated", done.stdout)
    assert cases is not None
    assert int(cases[1]) > 300
    record_property("schemathesis", {"cases": int(cases[1]), "failures": 0})


OF_THE_CONNECTION = (b"content-length", b"expect", b"host")


def test_no_bytes_make_the_running_server_fail(
    server: Server, url: str, record_property: Callable[[str, object], None]
) -> None:
    prefix = httpx.URL(url).raw_path
    answers: Counter[int] = Counter()

    @settings(FUZZED, max_examples=400)
    @given(st.one_of(any_request(), any_video()))
    def fuzz(request: Raw) -> None:
        body = b"".join(request.body)[:50_000]  # a server that refuses more may close before it is sent
        headers = [pair for pair in request.headers if pair[0] not in OF_THE_CONNECTION]
        headers += [(b"host", b"localhost"), (b"connection", b"close"), (b"content-length", b"%d" % len(body))]
        lines = b"".join(b"%s: %s\r\n" % pair for pair in headers)
        response = raw(
            server, b"%s %s%s HTTP/1.1\r\n%s\r\n%s" % (request.method.encode(), prefix, request.target, lines, body)
        )
        answers[response.status_code] += 1
        if response.content != b"Invalid HTTP request received.":  # uvicorn's own, before any application
            check_form(request.method, response.status_code, response.headers.get("content-type"), response.content)

    fuzz()
    assert {200, 400, 404} <= set(answers)
    record_property("fuzzed live", {"requests": answers.total(), **dict(sorted(answers.items()))})
