"""What HTTP refuses, and how it answers: on the running server, and on the routes with faults put in."""

import json
import threading
from collections import Counter
from typing import Any

import httpx
import pytest
from answers import check_error
from fastapi.testclient import TestClient
from local_api import URL
from running_server import Server

from cosmos3_models.approximations import APPROXIMATIONS
from cosmos3_models.params import GenerationDefaults
from serve.errors import StageFailed
from serve.http.access import Access
from serve.http.limits import MAX_BODY_BYTES
from serve.http.routes import create_api
from serve.inputs.uploads import UploadFolder
from serve.schema import VideoRequest, read_request

SYNC = "/v1/videos/sync"
OK = {"prompt": "x", "size": "32x32", "num_frames": 1, "num_inference_steps": 1}

BAD_FIELDS = [
    ({"prompt": None}, "prompt", "a valid string"),
    ({"prompt": ...}, "prompt", "a value"),
    ({"prompt": "  "}, "prompt", "some text"),
    ({"prompt": 5}, "prompt", "a valid string"),
    ({"prompt": "x" * 40_000}, "prompt", "at most 32768 characters"),
    ({"prompt": "é" * 5000}, "prompt", "at most 4096"),
    ({"size": "33x32"}, "width", "a multiple of 16 (nearest: 32 or 48)"),
    ({"size": "huge"}, "size", "pattern"),
    ({"size": "4112x32"}, "width", "less than or equal to 4096"),
    ({"size": "4096x4096", "num_frames": 101}, "size", "at most 273715200 pixels over all frames"),
    ({"size": "64x32", "width": 32, "height": 32}, "size", "what width and height says (32x32)"),
    ({"size": ..., "width": 32}, "width", "both width and height"),
    ({"num_frames": 10}, "num_frames", "4k + 1 frames (nearest: 9 or 13)"),
    ({"num_frames": 9, "seconds": "1"}, "seconds", "what num_frames says (9)"),
    ({"num_frames": ..., "seconds": "1000"}, "num_frames", "less than or equal to 1201"),
    ({"num_frames": ..., "seconds": "-1"}, "seconds", "pattern"),
    ({"num_inference_steps": 0}, "num_inference_steps", "greater than or equal to 1"),
    ({"num_inference_steps": 201}, "num_inference_steps", "less than or equal to 200"),
    ({"guidance_scale": 0}, "guidance_scale", "greater than or equal to 1"),
    ({"guidance_scale": float("nan")}, "guidance_scale", "less than or equal to 20"),
    ({"fps": 0}, "fps", "greater than or equal to 1"),
    ({"fps": float("inf")}, "fps", "less than or equal to 60"),
    ({"flow_shift": -1}, "flow_shift", "greater than or equal to 0.01"),
    ({"sigma_schedule": "euler"}, "sigma_schedule", "'flow', 'phyai', 'karras' or 'checkpoint'"),
    ({"seed": -1}, "seed", "greater than or equal to 0"),
    ({"seed": True}, "seed", "a number"),
    ({"generate_sound": "loud"}, "generate_sound", "a valid boolean"),
    ({"fp8_linears": True}, "fp8_linears", "false"),
    ({"fp8_attention": True}, "fp8_attention", "false"),
    ({"velocity_reuse": 1}, "velocity_reuse", "0, or 2 and more"),
    ({"guidance_reuse": 5}, "guidance_reuse", "less than or equal to 4"),
    ({"profile": "faster"}, "profile", "'exact' or 'fast'"),
    ({"step_cache": 0.1}, "step_cache", "one of the fields model, size"),
    ({"model": "sora-2"}, "model", "'tiny-cosmos3' or no model"),
    ({"steps": 3}, "steps", "one of the fields model, size"),
]


@pytest.mark.parametrize(("fields", "param", "expected"), BAD_FIELDS, ids=lambda value: str(value)[:40])
def test_a_bad_field_is_refused_by_name(server: Server, fields: dict[str, Any], param: str, expected: str) -> None:
    request = {name: value for name, value in (OK | fields).items() if value is not ...}
    body = json.dumps(request).encode()
    response = httpx.post(server.url + SYNC, content=body, headers={"content-type": "application/json"}, timeout=60)
    error = check_error(response, 400, "invalid_value")
    assert error["type"] == "invalid_request_error"
    assert error["param"] == param
    assert error["message"].startswith(f"{param}: got ")
    assert f"expected {expected}" in error["message"] or expected in error["message"]
    assert "because" in error["message"]
    assert response.headers["x-request-id"]


@pytest.mark.parametrize(
    ("body", "content_type", "told"),
    [
        (b"{", "application/json", "malformed JSON"),
        (b"", "application/json", "malformed JSON"),
        (b"[1]", "application/json", "got a JSON list, expected an object"),
        (b"[" * 100_000, "application/json", "malformed JSON"),
        (b"\xff\xfe", "application/json", "malformed JSON"),
        (b"prompt", "text/plain", "got 'text/plain', expected application/json"),
        (b"--a\r\nnonsense", "multipart/form-data; boundary=a", "malformed form"),
        (
            b'--a\r\ncontent-disposition: form-data; name="prompt"\r\n\r\nx',
            "multipart/form-data; boundary=a",
            "malformed",
        ),
        (b"x", "multipart/form-data", "malformed form"),
        (b"prompt=x&prompt=y", "application/x-www-form-urlencoded", "got the field twice"),
    ],
    ids=[
        "open brace",
        "empty",
        "a list",
        "too deep",
        "not text",
        "plain text",
        "broken form",
        "cut short",
        "no boundary",
        "twice",
    ],
)
def test_a_malformed_body_is_refused(server: Server, body: bytes, content_type: str, told: str) -> None:
    response = httpx.post(server.url + SYNC, content=body, headers={"content-type": content_type}, timeout=60)
    assert told in check_error(response, 400, "invalid_value")["message"]


def test_a_file_is_refused(server: Server) -> None:
    response = httpx.post(server.url + SYNC, data={"prompt": "x"}, files={"input_reference": b"picture"}, timeout=60)
    assert check_error(response, 400, "invalid_value")["param"] == "input_reference"


def test_a_body_over_the_limit_is_refused(server: Server) -> None:
    response = httpx.post(server.url + SYNC, content=b"x" * (MAX_BODY_BYTES + 1), timeout=60)
    assert str(MAX_BODY_BYTES) in check_error(response, 413, "too_large")["message"]


def test_an_unknown_route_and_a_wrong_method_have_the_same_form(server: Server) -> None:
    check_error(httpx.get(f"{server.url}/v1/nothing", timeout=60), 404, "not_found")
    check_error(httpx.delete(f"{server.url}/v1/videos", timeout=60), 405, "method_not_allowed")


def test_the_model_card_tells_name_defaults_and_limits(server: Server) -> None:
    listed = httpx.get(f"{server.url}/v1/models", timeout=60).json()
    (card,) = listed["data"]
    assert (listed["object"], card["object"], card["id"]) == ("list", "model", "tiny-cosmos3")
    assert card["sound"] is True
    assert card["defaults"]["num_inference_steps"] == 35
    assert card["max_pixel_frames"] == 1280 * 720 * 297
    assert card["allowed_approximations"] == [*APPROXIMATIONS]


def test_health_is_good_once_every_stage_runs(server: Server) -> None:
    response = httpx.get(f"{server.url}/health", timeout=60)
    assert (response.status_code, response.json()) == (200, {"status": "ok"})


def test_more_requests_than_the_queue_takes_are_told_to_come_back(server: Server) -> None:
    request = OK | {"size": "512x384", "num_frames": 65, "num_inference_steps": 200}
    answers = Counter[int]()

    def send() -> None:
        try:
            response = httpx.post(server.url + SYNC, json=request, timeout=8)
        except httpx.ReadTimeout:
            answers[0] += 1
        else:
            answers[response.status_code] += 1
            assert check_error(response, 429, "queue_full")["type"] == "rate_limit_error"
            assert int(response.headers["retry-after"]) >= 1

    clients = [threading.Thread(target=send) for _ in range(24)]
    for client in clients:
        client.start()
    for client in clients:
        client.join()
    assert set(answers) == {0, 429}
    assert answers[0] in (16, 17), "one runs and sixteen wait, or all sixteen still wait"
    assert httpx.post(server.url + SYNC, json=OK, timeout=60).status_code == 200, "who left has freed the queue"


class FaultyService:
    """A service whose stages fail."""

    videos: Any = None
    uploads = UploadFolder()

    def __init__(self, error: Exception) -> None:
        self._error = error

    async def make(self, *_: VideoRequest) -> Any:
        raise self._error

    async def store(self, *_: Any) -> Any:
        raise self._error

    def model_cards(self) -> Any:
        raise self._error

    async def unready_stages(self) -> list[str]:
        return ["Denoiser"]


def client(error: Exception) -> TestClient:
    return TestClient(create_api(FaultyService(error)), URL, raise_server_exceptions=False)


def test_a_failed_stage_is_a_500_that_says_which() -> None:
    error = check_error(client(StageFailed("the denoiser failed")).post(SYNC, json=OK), 500, "stage_failed")
    assert error["message"] == "the denoiser failed"


def test_an_unforeseen_error_tells_the_client_nothing_of_the_inside() -> None:
    response = client(RuntimeError("/secret/path")).post(SYNC, json=OK)
    error = check_error(response, 500, "internal_error")
    assert "secret" not in response.text
    assert error["type"] == "server_error"


KEY = "0123456789abcdef"
KEYS = Access(api_keys=(KEY, KEY[::-1]))
GUARDED = [
    ("POST", SYNC),
    ("POST", "/v1/videos"),
    ("GET", "/v1/videos"),
    ("GET", "/v1/models"),
    *(
        (method, f"/v1/videos/x{path}")
        for method, path in (("GET", ""), ("DELETE", ""), ("GET", "/content"), ("GET", "/events"))
    ),
]


@pytest.mark.parametrize(("method", "path"), GUARDED)
@pytest.mark.parametrize("given", [None, "Bearer wrong", f"Basic {KEY}", f"Bearer {KEY}x", "Bearer"])
def test_without_a_key_nothing_under_v1_answers(method: str, path: str, given: str | None) -> None:
    guarded = TestClient(create_api(FaultyService(RuntimeError()), KEYS), URL, raise_server_exceptions=False)
    headers = {} if given is None else {"Authorization": given}
    response = guarded.request(method, path, headers=headers, json=OK if method == "POST" else None)
    error = check_error(response, 401, "invalid_api_key")
    assert KEY not in error["message"]
    assert response.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize("key", [KEY, KEY[::-1]])
def test_each_of_the_keys_opens(key: str) -> None:
    guarded = TestClient(create_api(FaultyService(StageFailed("in")), KEYS), URL)
    check_error(guarded.post(SYNC, json=OK, headers={"Authorization": f"Bearer {key}"}), 500, "stage_failed")


def test_health_names_the_stages_that_are_not_ready() -> None:
    error = check_error(client(RuntimeError()).get("/health"), 503, "not_ready")
    assert error["message"] == "not ready: Denoiser"


@pytest.mark.parametrize(("route", "refused"), [("/v1/videos", set()), (SYNC, {"webhook_url"})])
def test_the_openapi_document_describes_the_request(route: str, refused: set[str]) -> None:
    document = client(RuntimeError()).get("/openapi.json").json()
    body = document["paths"][route]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert set(body["properties"]) == set(VideoRequest.model_fields) - refused
    assert body["additionalProperties"] is False


@pytest.mark.parametrize(
    ("seconds", "frames"),
    [("4", 97), (4, 97), ("8", 193), ("0.5", 13), ("0", 1), (2.5, 61), ("4.06", 97), ("4.09", 97)],
)
def test_seconds_become_the_nearest_number_of_frames(seconds: object, frames: int) -> None:
    request = read_request({"prompt": "x", "seconds": seconds})
    assert request.params(GenerationDefaults()).num_frames == frames


def test_seconds_count_at_the_frame_rate_of_request_or_checkpoint() -> None:
    assert VideoRequest(prompt="x", seconds="2", fps=12).params(GenerationDefaults()).num_frames == 25
    assert VideoRequest(prompt="x", seconds="2").params(GenerationDefaults(fps=10)).num_frames == 21


def test_what_is_absent_is_the_checkpoints_default() -> None:
    defaults = GenerationDefaults(height=64, width=96, num_inference_steps=3)
    params = VideoRequest(prompt="x", guidance_scale=2).params(defaults)
    assert (params.height, params.width, params.num_inference_steps, params.guidance_scale) == (64, 96, 3, 2)
    assert VideoRequest(prompt="x", size="32x48").params(defaults).height == 48
    assert VideoRequest(prompt="x", width=32, height=48, size="32x48").params(defaults).width == 32
