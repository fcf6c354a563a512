"""Pictures and clips on the running server: over every way in, the same bytes come out."""

import base64
import io
from typing import Any

import av
import httpx
import numpy as np
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


def test_an_extension_has_the_old_frames_and_then_the_new_ones(server: Server) -> None:
    data = clip(96, 64, 13, 24.0)
    form = {"prompt": "it goes on", "num_frames": "17", "size": "96x64", "num_inference_steps": "4"}
    form |= {"fps": "24", "seed": "5", "generate_sound": "true"}
    job = httpx.post(f"{server.url}/v1/videos/extensions", data=form, files={"video": data}, timeout=60).json()
    with av.open(io.BytesIO(finished(server, job["id"]))) as made, av.open(io.BytesIO(data)) as given:
        frames, old = (
            [frame.to_ndarray(format="rgb24").astype(float) for frame in file.decode(video=0)] for file in (made, given)
        )
    assert len(frames) == 13 + 17 - 5
    assert job["duration_s"] == round(len(frames) / 24, 6)
    assert max(abs(one - other).mean() for one, other in zip(frames, old, strict=False)) < 4, "encoded once more"
    with av.open(io.BytesIO(finished(server, job["id"]))) as made:
        waveform = np.concatenate([frame.to_ndarray() for frame in made.decode(audio=0)], axis=1)
        rate = made.streams.audio[0].rate
    silent, whole = round(8 / 24 * rate), round(25 / 24 * rate)
    assert waveform.shape[1] >= whole - 2048
    assert abs(waveform[:, : silent - 2048]).max() < 0.01 < abs(waveform[:, silent:]).max()
