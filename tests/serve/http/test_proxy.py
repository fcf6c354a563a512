"""What Serve's proxy answers by itself is in the one form as well; what applications answer is left alone."""

import os
import signal
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
import ray
from answers import check_error, raw
from fastapi.testclient import TestClient
from ray.serve._private.http_util import RequestIdMiddleware, convert_object_to_asgi_messages
from running_server import Server
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send

from serve.http import proxy as proxy_module
from serve.http.proxy import OneErrorForm

REPLICA = {"node_id": None, "node_ip": None, "actor_id": None, "actor_name": None, "worker_id": None, "pid": None}
REPLICA |= {"log_file_path": None, "replica_id": "x", "start_time_s": 0}
FAILED = """The deployment failed to start 3 times in a row. Error:
\x1b[36mray::ServeReplica:cosmos3:Ingress.initialize_and_get_metadata()\x1b[39m (pid=1, ip=127.0.0.1)
  File "/x/ray/serve/_private/replica.py", line 1928, in initialize
    raise RuntimeError(traceback.format_exc()) from None
RuntimeError: Traceback (most recent call last):
  File "/x/serve/ingress.py", line 139, in __init__
    source = TensorFiles(checkpoint.folder / "vae")
             ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
cosmos3_models.errors.CheckpointError: /home/me/models/demo/vae: no safetensors file in this folder
"""
NOT_FOUND = "Path '/x' not found. Ping http://.../-/routes for available routes."


def client(status: int, text: str, headers: Any = None) -> TestClient:
    """A client of a proxy that answers by itself."""

    async def proxy(_: Scope, __: Receive, send: Send) -> None:
        for message in convert_object_to_asgi_messages(text, status, headers):
            await send(message)

    return TestClient(OneErrorForm(RequestIdMiddleware(proxy)))


@pytest.mark.parametrize(
    ("status", "text", "expected", "code"),
    [
        (404, NOT_FOUND, 503, "not_ready"),
        (408, "Request 1 timed out after 6.0s", 408, "timed_out"),
        (429, "Request dropped due to backpressure", 429, "queue_full"),
        (503, "Deployment x is unavailable", 503, "not_ready"),
    ],
)
def test_the_proxys_own_answers_are_in_the_one_form(status: int, text: str, expected: int, code: str) -> None:
    response = client(status, text, [(b"retry-after", b"7")]).get("/x", headers={"x-request-id": "abc"})
    check_error(response, expected, code)
    assert text not in response.text
    assert response.headers["x-request-id"] == "abc"
    assert response.headers["retry-after"] == ("1" if status == 404 else "7")


@pytest.mark.parametrize("status", [200, 404, 429, 503])
def test_answers_of_applications_pass(status: int) -> None:
    plain = TestClient(OneErrorForm(PlainTextResponse("mine", status))).get("/")
    assert (plain.status_code, plain.text) == (status, "mine")


def test_health_and_routes_of_the_proxy_pass() -> None:
    response = client(200, "success").get("/-/healthz")
    assert (response.status_code, response.text) == (200, "success")


def unready(monkeypatch: pytest.MonkeyPatch, **applications: dict[str, Any]) -> None:
    """Let Serve's controller say this of its applications."""
    details = {"applications": applications, "proxies": {}}
    monkeypatch.setattr(proxy_module, "_get_global_client", lambda: SimpleNamespace(get_serve_details=lambda: details))


def application(name: str, route: str | None, **replicas: str) -> dict[str, Any]:
    """What Serve's controller says of an application with one replica of each deployment."""
    deployments = {
        stage: {
            "name": stage,
            "status": "HEALTHY" if state == "RUNNING" else "DEPLOY_FAILED",
            "status_trigger": "UNSPECIFIED",
            "message": "" if state == "RUNNING" else FAILED,
            "deployment_config": {"name": stage},
            "target_num_replicas": 1,
            "required_resources": {},
            "replicas": [REPLICA | {"state": state}],
        }
        for stage, state in replicas.items()
    }
    status = {"name": name, "route_prefix": route, "docs_path": None, "status": "DEPLOYING", "message": ""}
    return status | {
        "last_deployed_time_s": 0,
        "deployments": deployments,
        "external_scaler_enabled": False,
        "source": "declarative",
    }


def test_health_is_answered_for_an_ingress_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    def held(*_: Any) -> None:
        raise AssertionError("Serve would hold this request until there is an ingress")

    proxy = TestClient(OneErrorForm(held))
    unready(monkeypatch, ours=application("ours", "/", Ingress="STARTING", Tokenizer="RUNNING"))
    response = proxy.get("/health")
    message = check_error(response, 503, "not_ready")["message"]
    assert message == "not ready: Ingress: CheckpointError: demo/vae: no safetensors file in this folder"
    assert response.headers["x-request-id"]
    unready(monkeypatch, ours=application("ours", None))
    message = check_error(TestClient(OneErrorForm(held)).get("/health"), 503, "not_ready")["message"]
    assert message == "not ready: the graph"


def test_health_is_the_applications_own_answer_once_it_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = application("ours", "/", Ingress="RUNNING")
    unready(monkeypatch, ours=ours, other=application("other", "/other", Ingress="STARTING"))
    proxy = TestClient(OneErrorForm(PlainTextResponse("mine", 200)))
    assert (proxy.get("/health").text, proxy.get("/other/health").text) == ("mine", "mine")


def test_an_ingress_that_dies_is_told_and_may_be_asked_again(caplog: pytest.LogCaptureFixture) -> None:
    async def nothing(*_: Any) -> None:
        pass

    async def broken(*_: Any) -> None:
        raise RuntimeError("/secret")

    async def undecodable(*_: Any) -> None:
        b"\xff".decode()

    for proxy in (nothing, broken):
        response = TestClient(OneErrorForm(proxy)).get("/")
        assert "may or may not have been executed" in check_error(response, 503, "not_ready")["message"]
        assert response.headers["retry-after"] == "1"
    assert "RuntimeError: /secret" in caplog.text
    assert "UTF-8" in check_error(TestClient(OneErrorForm(undecodable)).get("/"), 400, "invalid_value")["message"]


def test_an_answer_that_has_begun_is_broken_off() -> None:
    async def half(_: Scope, __: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise RuntimeError("lost")

    with pytest.raises(RuntimeError, match="lost"):
        TestClient(OneErrorForm(half)).get("/")


@pytest.mark.parametrize("header", [b"x-request-id: \xff", b"x-session-id: \xff", b"x-request-timeout-seconds: \xff"])
def test_headers_that_the_running_proxy_cannot_read_are_refused(server: Server, header: bytes) -> None:
    response = raw(server, b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n%s\r\n\r\n" % header)
    check_error(response, 400, "invalid_value")


def test_a_path_and_query_of_any_bytes_get_through_the_running_proxy(server: Server) -> None:
    for target in (b"/v1/videos?after=\xff", b"/v1/videos/%ff%00", b"/%", b"//", b"/v1/videos?%ed%a0%80=1"):
        response = raw(server, b"GET %s HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n" % target)
        assert 400 <= response.status_code < 500
        if "json" in response.headers.get("content-type", ""):
            assert set(response.json()["error"]) == {"message", "type", "param", "code"}
        else:
            assert response.text == "Invalid HTTP request received.", "uvicorn's own, before any application"


def test_requests_and_probes_leave_no_line_in_the_logs_and_refusals_do(server: Server) -> None:
    folder = Path(ray._private.worker._global_node.get_session_dir_path()) / "logs" / "serve"

    def lines() -> list[str]:
        return [
            line
            for log in folder.glob("replica_*.log")
            for line in log.read_text().splitlines()
            if "/v1/" in line or "/health" in line
        ]

    with httpx.Client(base_url=server.url, timeout=60) as client:
        before = lines()
        for path in ("/health", "/v1/videos", "/v1/models") * 20:
            assert client.get(path).status_code == 200
        time.sleep(1)
        assert lines() == before
        request_id = client.get("/v1/videos/video_0").headers["x-request-id"]
        deadline = time.monotonic() + 60
        while not (new := set(lines()) - set(before)):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        (refusal,) = new
        assert f"{request_id} -- GET /v1/videos/video_0 404: video_id: got 'video_0'" in refusal


def test_an_ingress_that_is_killed_leaves_its_clients_an_answer_in_the_one_form(server: Server) -> None:
    answers: list[httpx.Response] = []
    request = {"prompt": "x", "size": "512x384", "num_frames": 65, "num_inference_steps": 200}

    def generate() -> None:
        answers.append(httpx.post(f"{server.url}/v1/videos/sync", json=request, timeout=60))

    waiting = threading.Thread(target=generate)
    waiting.start()
    time.sleep(2)
    os.kill(server.process("Ingress").pid, signal.SIGKILL)
    waiting.join(timeout=60)
    check_error(answers[0], 503, "not_ready")
    assert answers[0].headers["x-request-id"]
    deadline = time.monotonic() + 60
    while (response := httpx.get(f"{server.url}/health", timeout=30)).status_code != 200:
        check_error(response, 503, "not_ready")
        assert time.monotonic() < deadline
        time.sleep(0.1)
