"""Stored videos over the real HTTP server, with the real openai client, and over handles."""

import io
import json
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import av
import httpx
import openai
import pytest
from PIL import Image
from running_server import Server
from sample_requests import ENDLESS, LONG, PREVIEW_STEPS, REQUEST, WATCHED

pytestmark = pytest.mark.filterwarnings("ignore:The Sora API:DeprecationWarning")  # the shape stays, the service went


@pytest.fixture
def client(server: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=f"{server.url}/v1", timeout=60) as opened:
        yield opened


@pytest.fixture
def sdk(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="unused", max_retries=0) as opened:
        yield opened


@pytest.fixture(autouse=True)
def alone(client: httpx.Client) -> Iterator[None]:
    """No videos of other tests before, none of this one behind."""
    delete_all(client)
    yield
    delete_all(client)


def delete_all(client: httpx.Client) -> None:
    for video in client.get("/videos", params={"limit": 100}).json()["data"]:
        client.delete(f"/videos/{video['id']}")


def create(client: httpx.Client, request: dict[str, Any] = REQUEST, **headers: str) -> dict[str, Any]:
    response = client.post("/videos", json=request, headers=headers)
    assert response.status_code == 200, response.text
    record: dict[str, Any] = response.json()
    return record


def wait_for(client: httpx.Client, video_id: str, *statuses: str, step: int = 0) -> dict[str, Any]:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        record: dict[str, Any] = client.get(f"/videos/{video_id}").json()
        if record["status"] in statuses and record["step"] >= step:
            return record
        time.sleep(0.05)
    raise TimeoutError(record)


def stream(
    client: httpx.Client, video_id: str, last_event_id: int | None = None
) -> Iterator[tuple[int, dict[str, Any]]]:
    headers = {} if last_event_id is None else {"Last-Event-ID": str(last_event_id)}
    with client.stream("GET", f"/videos/{video_id}/events", headers=headers) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        for block in _blocks(response.iter_lines()):
            yield int(block["id"]), json.loads(block["data"])


def _blocks(lines: Iterator[str]) -> Iterator[dict[str, str]]:
    block: dict[str, str] = {}
    for line in lines:
        if line:
            name, _, value = line.partition(": ")
            block[name] = value
        else:
            yield block
            block = {}


def test_the_openai_client_works_unmodified(sdk: openai.OpenAI, server: Server, tmp_path: Path) -> None:
    fields = {"num_inference_steps": 4, "generate_sound": True, "fps": 12, "seed": 42}
    video = sdk.videos.create(prompt="a red ball", seconds="1", size="96x64", model="tiny-cosmos3", extra_body=fields)
    assert (video.object, video.status, video.progress) == ("video", "queued", 0)
    assert (video.size, video.seconds, video.model) == ("96x64", "1", "tiny-cosmos3")
    video = sdk.videos.poll(video.id)
    assert (video.status, video.progress, video.error) == ("completed", 100, None)
    assert video.expires_at is not None
    sdk.videos.download_content(video.id).write_to_file(tmp_path / "video.mp4")
    with av.open(str(tmp_path / "video.mp4")) as opened:
        assert len(list(opened.decode(video=0))) == 13
    same = httpx.post(f"{server.url}/v1/videos/sync", timeout=60, json=REQUEST | {"fps": 12, "num_frames": 13})
    assert (tmp_path / "video.mp4").read_bytes() == same.content, "a job gives the very bytes of the sync route"
    other = sdk.videos.create_and_poll(prompt="a blue cube", seconds="0", size="32x32", extra_body={"fps": 12})
    listed = [listed.id for listed in sdk.videos.list(limit=1)]
    assert listed == [other.id, video.id], "pages of one, the newest first"
    assert sdk.videos.list(limit=1, order="asc").data[0].id == video.id
    deleted = sdk.videos.delete(video.id)
    assert (deleted.id, deleted.deleted, deleted.object) == (video.id, True, "video.deleted")
    with pytest.raises(openai.NotFoundError, match="expected the id of a stored video"):
        sdk.videos.retrieve(video.id)
    with pytest.raises(openai.BadRequestError, match="model: got 'sora-2', expected 'tiny-cosmos3' or no model"):
        sdk.videos.create(prompt="x", model="sora-2")


def test_the_openai_client_may_delete_what_it_lists(sdk: openai.OpenAI) -> None:
    videos = [sdk.videos.create(prompt="x", extra_body=ENDLESS).id for _ in range(5)]
    deleted = []
    for video in sdk.videos.list(limit=2):
        deleted.append(sdk.videos.delete(video.id).id)
    assert deleted == videos[::-1]
    assert sdk.videos.list().data == []


def test_a_failed_job_is_a_record_with_a_code_and_no_http_error(sdk: openai.OpenAI, server: Server) -> None:
    video = sdk.videos.create(prompt="x", extra_body=ENDLESS)
    server.handle.cancel.remote(video.id).result()
    video = sdk.videos.poll(video.id)
    assert video.status == "failed"
    assert video.error is not None
    assert video.error.code == "cancelled"
    with pytest.raises(openai.NotFoundError, match="it is failed"):
        sdk.videos.download_content(video.id)


def test_a_record_tells_what_was_asked_where_it_is_and_how_long_it_takes(client: httpx.Client) -> None:
    request = LONG | {"seed": 5, "num_inference_steps": 200}
    response = client.post("/videos", json=request, headers={"x-request-id": "abc"})
    assert int(response.headers["openai-poll-after-ms"]) in range(500, 5001)
    record = response.json()
    assert {name: record[name] for name in ("seed", "num_inference_steps", "generate_sound", "size")} == {
        "seed": 5,
        "num_inference_steps": 200,
        "generate_sound": True,
        "size": "192x128",
    }
    assert re.fullmatch(r"video_[0-9a-f]{32}", record["id"])
    assert (record["status"], record["queue_position"], record["request_id"]) == ("queued", 1, "abc")
    record = wait_for(client, record["id"], "in_progress", step=2)
    assert (record["stage"], record["queue_position"], record["attempts"]) == ("denoiser", 0, 1)
    assert 0 < record["progress"] < 100
    assert record["eta_s"] > 0
    record = wait_for(client, record["id"], "completed")
    assert record["created_at"] <= record["started_at"] <= record["completed_at"]
    took_s = record["completed_at"] - record["created_at"]
    assert sum(record["stage_durations"].values()) == pytest.approx(took_s, abs=1), "times are whole seconds"
    assert list(record["stage_durations"]) == ["tokenizer", "queue", "denoiser", "decoders", "mux", "storing"]
    assert record["expires_at"] - record["completed_at"] in (604_800, 604_801)
    assert not [value for value in record.values() if isinstance(value, str) and "/" in value], "no path leaks"


def test_the_content_has_three_variants_and_takes_ranges(client: httpx.Client) -> None:
    video = wait_for(client, create(client)["id"], "completed")
    url = f"/videos/{video['id']}/content"
    whole = client.get(url)
    assert whole.headers["content-type"] == "video/mp4"
    assert whole.headers["accept-ranges"] == "bytes"
    assert video["id"] in whole.headers["content-disposition"]
    part = client.get(url, headers={"range": "bytes=100-199"})
    assert (part.status_code, part.content) == (206, whole.content[100:200])
    assert part.headers["content-range"] == f"bytes 100-199/{len(whole.content)}"
    assert client.get(url, headers={"range": "bytes=-5"}).content == whole.content[-5:]
    outside = client.get(url, headers={"range": "bytes=99999999-"})
    assert (outside.status_code, outside.headers["content-range"]) == (416, f"bytes */{len(whole.content)}")
    assert outside.json()["error"]["code"] == "range_not_satisfiable"
    assert client.get(url, headers={"if-none-match": whole.headers["etag"]}).status_code == 304
    assert client.head(url).headers["content-length"] == str(len(whole.content))
    for variant in ("thumbnail", "spritesheet"):
        picture = client.get(url, params={"variant": variant})
        assert picture.headers["content-type"] == "image/jpeg"
        with av.open(io.BytesIO(picture.content), format="mjpeg") as image:
            assert len(list(image.decode(video=0))) == 1
    refused = client.get(url, params={"variant": "poster"})
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == "variant"


def test_content_that_does_not_exist_yet_is_a_404(client: httpx.Client) -> None:
    response = client.get(f"/videos/{create(client, ENDLESS)['id']}/content")
    assert response.status_code == 404
    assert re.search("it is (queued|in_progress)", response.json()["error"]["message"])


def test_events_tell_every_step_and_then_the_end(client: httpx.Client) -> None:
    events = list(stream(client, create(client, LONG)["id"]))
    numbers = [number for number, _ in events]
    assert numbers == sorted(numbers)
    steps = [event["step"] for _, event in events if event.get("stage") == "denoiser"]
    assert steps == list(range(13))
    assert events[-1][1]["type"] == "completed"
    assert events[-1][1]["video"]["status"] == "completed"


def test_events_resume_after_a_broken_connection(client: httpx.Client) -> None:
    video = create(client, LONG)["id"]
    received = []
    for number, event in stream(client, video):
        received.append((number, event))
        if event.get("step") == 4:
            break
    received += stream(client, video, last_event_id=received[-1][0])
    steps = [event["step"] for _, event in received if event.get("stage") == "denoiser"]
    assert steps == list(range(13)), "each once"
    assert list(stream(client, video, last_event_id=received[-1][0])) == []
    replayed = [event["step"] for _, event in stream(client, video) if event.get("stage") == "denoiser"]
    assert replayed == list(range(13)), "who comes late gets them all"


def test_events_of_a_deleted_job_end(client: httpx.Client) -> None:
    video = create(client, ENDLESS)["id"]
    for _, event in stream(client, video):
        if event["type"] == "progress":
            client.delete(f"/videos/{video}")
        last = event
    assert last == {"type": "deleted"}


def test_a_deleted_job_frees_the_denoiser_within_a_step(client: httpx.Client, server: Server) -> None:
    video = create(client, ENDLESS)["id"]
    wait_for(client, video, "in_progress", step=1)
    start = time.monotonic()
    client.delete(f"/videos/{video}")
    assert next(iter(server.handle.options(stream=True).stream.remote(REQUEST)))["step"] == 0
    assert time.monotonic() - start < 30, "200 steps take minutes"
    assert client.get(f"/videos/{video}").status_code == 404


def test_a_queued_job_that_is_deleted_never_starts(client: httpx.Client) -> None:
    running = create(client, ENDLESS)["id"]
    waiting = [create(client, ENDLESS)["id"] for _ in range(3)]
    wait_for(client, running, "in_progress", step=1)
    records = [client.get(f"/videos/{video}").json() for video in waiting]
    assert [record["queue_position"] for record in records] == [1, 2, 3]
    for video in waiting:
        assert client.delete(f"/videos/{video}").json() == {"id": video, "object": "video.deleted", "deleted": True}
    client.delete(f"/videos/{running}")
    assert wait_for(client, create(client)["id"], "completed", "failed")["status"] == "completed"


def test_the_same_key_again_is_the_same_job_and_another_request_with_it_a_conflict(client: httpx.Client) -> None:
    keyed = {"Idempotency-Key": "0a1b"}
    first = create(client, REQUEST, **keyed)
    assert create(client, REQUEST, **keyed)["id"] == first["id"]
    assert create(client)["id"] != first["id"]
    conflict = client.post("/videos", json=REQUEST | {"seed": 1}, headers=keyed)
    assert conflict.status_code == 409
    assert conflict.json()["error"]["code"] == "idempotency_key_reused"
    too_long = client.post("/videos", json=REQUEST, headers={"Idempotency-Key": "x" * 300})
    assert too_long.status_code == 400
    assert too_long.json()["error"]["param"] == "idempotency-key"


class Forgetful(BaseHTTPRequestHandler):
    """A proxy that passes every POST on and loses the answer of the first one."""

    target, lost = "", 0

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        headers = {name: self.headers[name] for name in ("content-type", "idempotency-key") if name in self.headers}
        answer = httpx.post(self.target + self.path, content=body, headers=headers, timeout=60)
        if not type(self).lost:
            type(self).lost += 1
            return  # the connection closes
        self.send_response(answer.status_code)
        self.send_header("content-type", answer.headers["content-type"])
        self.end_headers()
        self.wfile.write(answer.content)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.mark.parametrize(("headers", "jobs"), [({"Idempotency-Key": "5a5b"}, 1), ({}, 2)], ids=["key", "no key"])
def test_the_openai_client_makes_one_job_of_a_lost_answer_if_it_is_given_a_key(
    server: Server, client: httpx.Client, headers: dict[str, str], jobs: int
) -> None:
    handler = type("Handler", (Forgetful,), {"target": server.url})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as proxy:
        threading.Thread(target=proxy.serve_forever, daemon=True).start()
        with openai.OpenAI(base_url=f"http://127.0.0.1:{proxy.server_port}/v1", api_key="unused") as sdk:
            video = sdk.videos.create(prompt="a red ball", extra_body=ENDLESS, extra_headers=headers)
        proxy.shutdown()
    stored = [listed["id"] for listed in client.get("/videos").json()["data"]]
    assert video.id in stored
    assert len(stored) == jobs
    assert handler.lost == 1


def test_a_prompt_of_too_many_tokens_is_refused_before_it_is_a_job(client: httpx.Client) -> None:
    response = client.post("/videos", json=REQUEST | {"prompt": "é" * 5000})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "prompt"
    assert client.get("/videos").json()["data"] == []


def test_a_client_that_leaves_before_the_answer_leaves_its_job(client: httpx.Client, server: Server) -> None:
    def leave() -> None:
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{server.url}/v1/videos", json=REQUEST, timeout=httpx.Timeout(5, read=0.001))

    threads = [threading.Thread(target=leave) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    time.sleep(1)
    for video in client.get("/videos").json()["data"]:
        assert wait_for(client, video["id"], "completed", "failed")["status"] == "completed"


@pytest.mark.parametrize(
    ("query", "param"),
    [({"limit": 0}, "limit"), ({"limit": 101}, "limit"), ({"limit": "x"}, "limit"), ({"order": "up"}, "order")],
)
def test_a_bad_query_is_refused_in_the_one_form(client: httpx.Client, query: dict[str, Any], param: str) -> None:
    response = client.get("/videos", params=query)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == param
    assert "got" in response.json()["error"]["message"]


@pytest.mark.parametrize("path", ["", "/content", "/events"])
@pytest.mark.parametrize("video_id", ["video_0", "..%2f..%2fetc%2fpasswd", "%00", "x" * 3000])
def test_an_unknown_id_is_not_found(client: httpx.Client, path: str, video_id: str) -> None:
    response = client.get(f"/videos/{video_id}{path}")
    assert response.status_code == 404
    assert response.json()["error"]["code"] == "not_found"


FOREIGN_JOB = """
import sys, time
sys.modules |= dict.fromkeys(("serve", "cosmos3_models"))  # as where they are not installed
import ray
from ray import serve
from ray.exceptions import RayTaskError
ray.init(address=sys.argv[1], log_to_driver=False)
graph = serve.get_app_handle("cosmos3")
request, endless = map(eval, sys.argv[2:])
video = graph.submit.remote(request, idempotency_key="h").result()
assert graph.retrieve.remote(video["id"]).result()["id"] == video["id"]
listed = graph.list.remote(status=None, metadata={"from": "handle"}).result()
assert [each["id"] for each in listed["data"]] == [video["id"]], listed
long = graph.submit.remote(endless).result()
assert graph.cancel.remote(long["id"]).result()["id"] == long["id"]
deadline = time.monotonic() + 60
while (record := graph.retrieve.remote(video["id"]).result())["status"] != "completed":
    assert time.monotonic() < deadline, record
    time.sleep(0.1)
assert graph.cancel.remote(video["id"]).result()["status"] == "completed", "what is finished stays"
made = graph.generate.remote(request).result()
assert made["record"]["metadata"] == {"from": "handle"}
assert graph.delete.remote(video["id"]).result() == {"id": video["id"], "object": "video.deleted", "deleted": True}
failing = [
    (lambda: graph.retrieve.remote(video["id"]).result(), 404, "not_found", "video_id"),
    (lambda: graph.submit.remote(request | {"fps": 0}).result(), 400, "invalid_value", "fps"),
    (lambda: graph.submit.remote(request | {"fps": 2}, idempotency_key="h2").result(), None, None, None),
    (lambda: graph.submit.remote(request, idempotency_key="h2").result(), 409, "idempotency_key_reused", None),
    (lambda: graph.generate.remote(request | {"prompt": "\u00e9" * 5000}).result(), 400, "invalid_value", "prompt"),
    (lambda: list(graph.options(stream=True).stream.remote({})), 400, "invalid_value", "prompt"),
    (lambda: graph.list.remote(limit=0).result(), 400, "invalid_value", "limit"),
]
for call, *expected in failing:
    try:
        call()
        got = [None, None, None]
    except RayTaskError as error:
        got = [error.cause.status, error.cause.code, error.cause.param]
        assert error.cause.message == str(error.cause) != ""
    assert got == expected, (got, expected)
"""


def test_a_ray_job_without_this_package_can_do_what_http_can(server: Server, cluster: str) -> None:
    request = REQUEST | {"metadata": {"from": "handle"}}
    command = [sys.executable, "-c", FOREIGN_JOB, cluster, repr(request), repr(ENDLESS)]
    done = subprocess.run(command, cwd="/", capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    assert httpx.get(f"{server.url}/health", timeout=60).status_code == 200


def test_a_preview_is_an_event_and_the_content_of_a_job_that_is_not_finished(client: httpx.Client) -> None:
    video_id = create(client, WATCHED)["id"]
    with client.stream("GET", f"/videos/{video_id}/events") as stream:
        events = (json.loads(line[6:]) for line in stream.iter_lines() if line.startswith("data: "))
        shown = next(event for event in events if event["type"] == "preview")
    assert shown["step"] in PREVIEW_STEPS
    assert shown["steps"] == 200
    preview = client.get(f"/videos/{video_id}/content", params={"variant": "preview"})
    assert preview.status_code == 200
    assert preview.headers["content-type"] == "image/jpeg"
    with Image.open(io.BytesIO(preview.content)) as picture:
        assert picture.size == (4 * 192, 128)
    assert client.get(f"/videos/{video_id}").json()["status"] == "in_progress"
    missing = client.get(f"/videos/{video_id}/content")
    assert missing.status_code == 404
    assert client.delete(f"/videos/{video_id}").status_code == 200
    assert client.get(f"/videos/{video_id}/content", params={"variant": "preview"}).status_code == 404
