"""Whatever a client sends, the answer is one that the served OpenAPI document promises, and never a 5xx."""

import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import Server, program
from fakes import fake_application, picklable
from ray import serve

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
    assert "Selected: 9/9" in done.stdout
    cases = re.search(r"(\d+) generated", done.stdout)
    assert cases is not None
    assert int(cases[1]) > 300
    record_property("schemathesis", {"cases": int(cases[1]), "failures": 0})
