"""Pictures and clips on the running server: over every way in, the same bytes come out."""

import base64
from typing import Any

import httpx
import pytest
from running_server import Server
from sample_media import clip, picture
from sample_requests import REQUEST

FIELDS = {name: value for name, value in REQUEST.items() if name != "generate_sound"}


def form() -> dict[str, str]:
    return {name: str(value) for name, value in FIELDS.items()}


@pytest.mark.parametrize("data", [picture(), clip()], ids=["picture", "clip"])
def test_sync_job_and_handle_make_the_same_video_of_a_reference(server: Server, data: bytes) -> None:
    sync = httpx.post(f"{server.url}/v1/videos/sync", data=form(), files={"input_reference": data}, timeout=120)
    assert sync.status_code == 200, sync.text
    url = "data:application/octet-stream;base64," + base64.b64encode(data).decode()
    job = httpx.post(f"{server.url}/v1/videos", json=FIELDS | {"input_reference": {"image_url": url}}, timeout=60)
    assert job.status_code == 200, job.text
    made = server.handle.generate.remote(FIELDS | {"input_reference": data}).result()
    assert made["mp4"] == sync.content
    assert finished(server, job.json()["id"]) == sync.content
    without = httpx.post(f"{server.url}/v1/videos/sync", json=FIELDS, timeout=120)
    assert without.content != sync.content


def finished(server: Server, video_id: str) -> bytes:
    """The file of a job, once it has completed."""
    with httpx.stream("GET", f"{server.url}/v1/videos/{video_id}/events", timeout=120) as events:
        assert '"completed"' in events.read().decode()
    return httpx.get(f"{server.url}/v1/videos/{video_id}/content", timeout=60).content


def test_images_are_those_of_their_seeds(server: Server) -> None:
    fields: dict[str, Any] = {"prompt": "a red ball", "size": "96x64", "num_inference_steps": 4, "seed": 5, "n": 2}
    images = httpx.post(f"{server.url}/v1/images/generations", json=fields, timeout=120).json()
    del fields["n"]
    one = httpx.post(f"{server.url}/v1/videos/sync", json=fields | {"num_frames": 1, "seed": 6}, timeout=120)
    assert base64.b64decode(images["data"][1]["b64_json"]) == one.content
    assert images["data"][0]["b64_json"] != images["data"][1]["b64_json"]
