"""Videos that derive from others, and images: what OpenAI's client asks for, and what comes of it."""

import base64
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from answers import check_error
from local_api import LocalClient, local_client
from PIL import Image
from sample_media import clip, picture

from cosmos3_models.media import isolated
from serve.jobs.job import Job

pytestmark = pytest.mark.filterwarnings("ignore:The Sora API:DeprecationWarning")

FIELDS = {"size": "96x64", "num_frames": 17, "fps": 12, "num_inference_steps": 4, "guidance_scale": 3.5, "seed": 5}


@pytest.fixture
def client(tmp_path: Path) -> Iterator[LocalClient]:
    with local_client(tmp_path) as opened:
        yield opened


@pytest.fixture
def sdk(client: LocalClient) -> openai.OpenAI:
    """OpenAI's client, whose requests go straight to the routes."""
    return openai.OpenAI(base_url="http://localhost/v1", api_key="unused", http_client=client, max_retries=0)


def finished(client: LocalClient, data: bytes, **fields: Any) -> str:
    client.submit(**fields)
    names = ("image", "thumbnail") if fields.get("num_frames") == 1 else ("video", "thumbnail", "spritesheet")
    video: str = client.call(client.service.finish, names, data)
    return video


def job_of(client: LocalClient, video_id: str) -> Job:
    job: Job = client.call(client.service.videos.table.get, video_id)
    return job


def input_of(client: LocalClient, job: Job) -> bytes:
    data: bytes = client.call(client.service.videos._files.read_input, job)
    return data


# ---- a video of this server as the reference


@pytest.mark.parametrize(("num_frames", "data"), [(17, clip()), (1, picture())], ids=["video", "image"])
def test_a_finished_video_or_image_is_the_reference(client: LocalClient, num_frames: int, data: bytes) -> None:
    source = finished(client, data, **FIELDS | {"num_frames": num_frames})
    response = client.post("/v1/videos", json={"prompt": "y", "input_reference": {"file_id": source}})
    assert response.status_code == 200, response.text
    job = job_of(client, response.json()["id"])
    assert input_of(client, job) == data
    record = response.json()["input_reference"]
    assert (record["file_id"], record["continued"], record["width"]) == (source, False, 64)
    client.delete(f"/v1/videos/{source}")
    assert input_of(client, job) == data, "it outlives its source"


def test_a_video_that_has_not_finished_is_refused_by_name(client: LocalClient) -> None:
    response = client.post("/v1/videos", json={"prompt": "y", "input_reference": {"file_id": client.submit()}})
    error = check_error(response, 400, "invalid_value")
    assert error["param"] == "input_reference"
    assert "got a video that is queued" in error["message"]


# ---- OpenAI's client


def test_openais_client_sends_a_picture_in_all_its_forms(
    sdk: openai.OpenAI, client: LocalClient, tmp_path: Path
) -> None:
    (tmp_path / "a.png").write_bytes(picture())
    url = "data:image/png;base64," + base64.b64encode(picture()).decode()
    for file in (tmp_path / "a.png", ("a.png", picture(), "image/png")):
        video = sdk.videos.create(prompt="x", input_reference=file)
        assert input_of(client, job_of(client, video.id)) == picture()
    source = finished(client, clip())
    # The client takes an object here by its types, but not by its code.
    objects: list[tuple[dict[str, str], bytes]] = [({"image_url": url}, picture()), ({"file_id": source}, clip())]
    for reference, data in objects:
        video = sdk.videos.create(prompt="x", extra_body={"input_reference": reference})
        assert input_of(client, job_of(client, video.id)) == data


def test_a_remix_is_the_same_request_with_another_prompt(sdk: openai.OpenAI, client: LocalClient) -> None:
    url = "data:image/png;base64," + base64.b64encode(picture()).decode()
    source = finished(client, clip(), **FIELDS, metadata={"a": "b"}, input_reference={"image_url": url})
    remix = sdk.videos.remix(source, prompt="a blue ball")
    assert remix.remixed_from_video_id == source
    first, second = (client.get(f"/v1/videos/{name}").json() for name in (source, remix.id))
    differing = {name for name in first if first[name] != second[name]}
    assert differing <= {
        *("id", "prompt", "status", "progress", "step", "stage", "remixed_from_video_id", "created_at", "started_at"),
        *("completed_at", "expires_at", "attempts", "stage_durations", "queue_position", "eta_s", "request_id"),
    }
    assert second["prompt"] == "a blue ball"
    assert job_of(client, remix.id).input_reference == job_of(client, source).input_reference, "one file for both"


def test_a_stored_file_is_checked_again_only_if_it_has_changed(
    client: LocalClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = "data:image/png;base64," + base64.b64encode(picture()).decode()
    source = finished(client, clip(), **FIELDS, input_reference={"image_url": url})
    checked: list[Path] = []
    inspect = isolated.inspect
    monkeypatch.setattr(isolated, "inspect", lambda path: checked.append(path) or inspect(path))
    remix = client.post(f"/v1/videos/{source}/remix", json={"prompt": "y"}).json()
    stored = job_of(client, source).input_reference
    assert (job_of(client, remix["id"]).input_reference, checked) == (stored, [])
    assert stored is not None
    client.call(client.service.videos._media.write, stored.file, b"damaged")
    response = client.post(f"/v1/videos/{source}/remix", json={"prompt": "y"})
    assert check_error(response, 400, "invalid_value")["param"] == "input_reference"
    assert len(checked) == 1


def test_a_remix_takes_further_fields(client: LocalClient) -> None:
    source = finished(client, clip(), **FIELDS)
    response = client.post(
        f"/v1/videos/{source}/remix", json={"prompt": "y", "seed": 7, "size": "32x32", "seconds": "2"}
    )
    record = response.json()
    assert (record["seed"], record["size"], record["num_frames"], record["fps"]) == (7, "32x32", 25, 12)


def test_a_remix_with_a_profile_has_the_fields_of_that_profile(client: LocalClient) -> None:
    source = finished(client, clip(), **FIELDS, profile="fast", guidance_reuse=3)

    def reuse(**fields: Any) -> tuple[int, int]:
        record = client.post(f"/v1/videos/{source}/remix", json={"prompt": "y"} | fields).json()
        return record["velocity_reuse"], record["guidance_reuse"]

    assert reuse() == (5, 3)
    assert reuse(profile="exact") == (0, 0)
    assert reuse(profile="fast") == (5, 0)
    assert reuse(velocity_reuse=0) == (0, 3)


def test_what_cannot_be_remixed_is_refused(client: LocalClient) -> None:
    queued = client.submit()
    error = check_error(client.post(f"/v1/videos/{queued}/remix", json={"prompt": "y"}), 400, "invalid_value")
    assert error["param"] == "video_id"
    check_error(client.post("/v1/videos/video_0/remix", json={"prompt": "y"}), 404, "not_found")
    source = finished(client, clip())
    assert check_error(client.post(f"/v1/videos/{source}/remix", json={}), 400, "invalid_value")["param"] == "prompt"


def test_an_extension_of_a_finished_video_has_its_settings_and_seconds_more(
    sdk: openai.OpenAI, client: LocalClient
) -> None:
    source = finished(client, clip(96, 64, 17, 12.0), **FIELDS)
    video = sdk.videos.extend(prompt="it goes on", seconds="4", video=openai.omit, extra_body={"video": {"id": source}})
    job = job_of(client, video.id)
    assert job.params["condition_video_keep"] == "last"
    assert (job.params["width"], job.params["height"], job.params["fps"], job.params["guidance_scale"]) == (
        96,
        64,
        12,
        3.5,
    )
    assert job.params["num_frames"] == 4 * 12 + 5, "five frames are those of the clip"
    assert job.continues
    record = client.get(f"/v1/videos/{video.id}").json()
    assert (record["seconds"], record["duration_s"]) == ("4", round((17 + 4 * 12) / 12, 6))
    assert record["input_reference"]["continued"]
    assert input_of(client, job) == clip(96, 64, 17, 12.0)
    again = client.call(client.service.finish, ("video",), clip(96, 64, 65, 12.0))
    assert sdk.videos.remix(again, prompt="another end").id
    remix = client.get("/v1/videos", params={"limit": 1}).json()["data"][0]
    assert remix["input_reference"]["continued"], "a remix of an extension is one as well"


def test_an_extension_of_an_uploaded_clip_has_its_ratio(sdk: openai.OpenAI, client: LocalClient) -> None:
    video = sdk.videos.extend(prompt="it goes on", seconds="4", video=("a.mp4", clip(160, 80), "video/mp4"))
    job = job_of(client, video.id)
    assert job.params["width"] == 2 * job.params["height"]
    assert input_of(client, job) == clip(160, 80)


@pytest.mark.parametrize(
    ("fields", "files", "param"),
    [
        ({}, {}, "video"),
        ({"video": "a.mp4"}, {}, "video"),
        ({"video[id]": "video_0"}, {}, "video"),
        ({}, {"video": picture()}, "video"),
        ({}, {"video": b"no clip"}, "video"),
        ({}, {"input_reference": clip()}, "input_reference"),
        ({"condition_video_keep": "first"}, {"video": clip()}, "condition_video_keep"),
    ],
    ids=["nothing", "a name", "unknown", "a picture", "no clip", "another field", "the beginning"],
)
def test_what_cannot_be_extended_is_refused_by_name(
    client: LocalClient, fields: dict[str, str], files: dict[str, bytes], param: str
) -> None:
    form = {"prompt": "x", "seconds": "4"} | fields
    error = check_error(client.post("/v1/videos/extensions", data=form, files=files), 400, "invalid_value")
    assert error["param"] == param
    assert error["message"].startswith(f"{param}: got ")
    assert client.get("/v1/videos").json()["data"] == []


def test_the_same_key_on_another_route_is_another_request(client: LocalClient) -> None:
    source = finished(client, clip())
    key = {"Idempotency-Key": "k"}
    remix = client.post(f"/v1/videos/{source}/remix", json={"prompt": "y"}, headers=key)
    assert (
        client.post(f"/v1/videos/{source}/remix", json={"prompt": "y"}, headers=key).json()["id"] == remix.json()["id"]
    )
    extension = client.post("/v1/videos/extensions", json={"prompt": "y", "video": {"id": source}}, headers=key)
    check_error(extension, 409, "idempotency_key_reused")


# ---- images


def test_openais_client_gets_images(sdk: openai.OpenAI) -> None:
    for kind in ("png", "jpeg", "webp"):
        images = sdk.images.generate(prompt="x", size="96x64", n=2, output_format=kind, extra_body={"seed": 8})  # type: ignore[call-overload]
        assert (images.output_format, images.size, len(images.data)) == (kind, "96x64", 2)
        assert [image.seed for image in images.data] == [8, 9]
        for image in images.data:
            with Image.open(io.BytesIO(base64.b64decode(image.b64_json))) as opened:
                assert (opened.format, opened.size) == (kind.upper(), (96, 64))


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"n": 5}, "n"),
        ({"n": 0}, "n"),
        ({"response_format": "url"}, "response_format"),
        ({"output_format": "gif"}, "output_format"),
        ({"num_frames": 5}, "num_frames"),
        ({"size": "auto"}, "size"),
        ({"input_reference": {"file_id": "video_0"}}, "input_reference"),
        ({"model": "dall-e-3"}, "model"),
        ({"prompt": ""}, "prompt"),
    ],
)
def test_a_bad_field_of_an_image_is_refused_by_name(client: LocalClient, fields: dict[str, Any], param: str) -> None:
    response = client.post("/v1/images/generations", json={"prompt": "x"} | fields)
    assert check_error(response, 400, "invalid_value")["param"] == param
