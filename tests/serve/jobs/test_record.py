"""What a record says of its request and of the time that it took, and which records a list shows."""

import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from local_api import URL, LocalClient, local_client

from cosmos3_models.params import MAX_SEED
from serve.graph.artifacts import EXTENSIONS, MEDIA_TYPES
from serve.http.making import timing_headers
from serve.schema import ListQuery

SMALL = {"prompt": "x", "size": "32x32", "num_frames": 5, "num_inference_steps": 1}


@pytest.fixture
def client(tmp_path: Path) -> Iterator[LocalClient]:
    with local_client(tmp_path) as opened:
        yield opened


def record(client: LocalClient, headers: dict[str, str] | None = None, **fields: Any) -> dict[str, Any]:
    """A stored job's record, of which every route says the same."""
    response = client.post("/v1/videos", json=SMALL | fields, headers=headers)
    assert response.status_code == 200, response.text
    video: dict[str, Any] = response.json()
    assert client.get(f"/v1/videos/{video['id']}").json() == video
    return video


def change(folder: Path, statement: str, *values: object) -> None:
    """Write to the job table behind the server's back."""
    with sqlite3.connect(folder / "data/jobs.sqlite") as connection:
        connection.execute(statement, values)


def test_a_request_without_a_seed_has_one_of_its_own_that_its_record_shows(client: LocalClient) -> None:
    seeds = {record(client)["seed"] for _ in range(8)}
    assert len(seeds) == 8
    assert all(0 <= seed <= MAX_SEED for seed in seeds)
    assert record(client, seed=7)["seed"] == 7
    sync = [client.post("/v1/videos/sync", json=SMALL).headers["x-seed"] for _ in range(4)]
    assert len(set(sync)) == 4
    (card,) = client.get("/v1/models").json()["data"]
    assert "seed" not in card["defaults"]


def test_a_repeated_request_without_a_seed_is_the_same_job_and_keeps_its_seed(client: LocalClient) -> None:
    key = {"Idempotency-Key": "k"}
    first = record(client, key)
    assert record(client, key) == first
    assert client.post("/v1/videos", data=SMALL, headers=key).json() == first, "as a form"
    assert record(client, key, seed=None) == first
    for other in ({"seed": first["seed"]}, {"prompt": "y"}, {"num_inference_steps": 2}):
        assert client.post("/v1/videos", json=SMALL | other, headers=key).status_code == 409


def test_a_request_that_an_older_release_stored_can_be_repeated(client: LocalClient, tmp_path: Path) -> None:
    key = {"Idempotency-Key": "k"}
    first = record(client, key)
    change(tmp_path, "UPDATE jobs SET fingerprint = NULL, params = json_remove(params, '$.condition_video_keep')")
    assert record(client, key) == first
    assert client.post("/v1/videos", json=SMALL | {"prompt": "y"}, headers=key).status_code == 409


def test_a_record_repeats_the_seconds_that_were_asked_for_beside_the_exact_length(client: LocalClient) -> None:
    asked = {"num_frames": None, "fps": 12}
    video = record(client, seconds="2", **asked)
    assert (int(video["seconds"]), video["num_frames"], video["duration_s"]) == (2, 25, 2.083333)
    assert record(client, seconds=2.5, **asked)["seconds"] == "2.5"
    exact = record(client, fps=4)
    assert (exact["seconds"], exact["duration_s"]) == ("1.25", 1.25)


def test_the_times_of_a_record_add_up(client: LocalClient, tmp_path: Path) -> None:
    video = record(client)
    assert (video["started_at"], video["stage_durations"]) == (None, None)
    assert client.call(client.service.finish) == video["id"]
    change(tmp_path, "UPDATE jobs SET created_at = completed_at - 59, started_at = completed_at - 18.5")
    durations = '{"tokenizer": 0.5, "queue": 2.0, "denoiser": 16.0, "decoders": 2.0, "storing": 0.5}'
    change(tmp_path, "UPDATE jobs SET stage_durations = ?", durations)
    video = client.get(f"/v1/videos/{video['id']}").json()
    assert video["stage_durations"] == {
        "tokenizer": 0.5,
        "queue": pytest.approx(40, abs=0.01),
        "denoiser": 16.0,
        "decoders": 2.0,
        "storing": 0.5,
    }
    assert video["completed_at"] - video["created_at"] == 59
    assert video["started_at"] - video["created_at"] in (40, 41)


def test_the_wait_in_the_queue_is_no_inference_time() -> None:
    made = {"model": "m", "seed": 1, "stage_durations": {"tokenizer": 0.25, "queue": 5.0, "denoiser": 1}}
    headers = timing_headers(made | {"revised_prompt": None, "prompt_upsampling_error": None})
    assert headers["X-Inference-Time-S"] == "1.250"
    assert '"queue": 5.0' in headers["X-Stage-Durations"]


def test_a_record_without_a_spritesheet_has_its_other_files(client: LocalClient, tmp_path: Path) -> None:
    video = record(client)
    client.call(client.service.finish)
    change(tmp_path, "UPDATE jobs SET artifacts = json_remove(artifacts, '$[2]')")
    url = f"/v1/videos/{video['id']}/content"
    assert client.get(url).headers["content-type"] == "video/mp4"
    assert client.get(url, params={"variant": "thumbnail"}).headers["content-type"] == "image/jpeg"
    missing = client.get(url, params={"variant": "spritesheet"})
    assert (missing.status_code, missing.json()["error"]["param"]) == (404, "variant")
    assert missing.json()["error"]["message"] == "this video has no spritesheet"


def test_a_job_that_is_queued_again_has_not_started(client: LocalClient) -> None:
    video, table = record(client), client.service.videos.table

    async def start_and_release() -> None:
        job = await table.claim()
        assert job is not None
        assert job.owner is not None
        await table.start(job.owner)
        assert (await client.service.videos.retrieve(job.id)).started_at is not None
        await table.release(job.owner)

    client.call(start_and_release)
    again = client.get(f"/v1/videos/{video['id']}").json()
    assert (again["status"], again["attempts"], again["started_at"]) == ("queued", 1, None)


def test_a_record_of_another_release_is_shown_as_it_was_stored(client: LocalClient, tmp_path: Path) -> None:
    old = record(client)
    change(
        tmp_path, "UPDATE jobs SET params = json_set(params, '$.height', 33000, '$.sigma_schedule', 'old', '$.x', 1)"
    )
    change(tmp_path, "UPDATE jobs SET params = json_remove(params, '$.append_metadata')")
    record(client)
    video = client.get(f"/v1/videos/{old['id']}").json()
    assert (video["size"], video["sigma_schedule"], video["append_metadata"]) == ("32x33000", "old", True)
    assert video in client.get("/v1/videos").json()["data"]


def ids(client: LocalClient, query: str) -> list[str]:
    response = client.get(f"/v1/videos?{query}")
    assert response.status_code == 200, response.text
    return [video["id"] for video in response.json()["data"]]


def test_lists_are_filtered_by_status_time_and_metadata(client: LocalClient, tmp_path: Path) -> None:
    first = record(client, metadata={"job": "a", "part": "1"})
    assert first["metadata"] == {"job": "a", "part": "1"}
    second = client.post("/v1/videos", data=SMALL | {"metadata[job]": "a", "metadata[part]": "2"}).json()
    assert second["metadata"] == {"job": "a", "part": "2"}
    plain = record(client)
    assert plain["metadata"] == {}
    client.call(client.service.finish)
    assert ids(client, "status=completed") == [first["id"]]
    assert ids(client, "status=queued&order=asc") == [second["id"], plain["id"]]
    assert ids(client, "status=failed") == []
    assert ids(client, "metadata[job]=a") == ids(client, "metadata%5Bjob%5D=a") == [second["id"], first["id"]]
    assert ids(client, "metadata[job]=a&metadata[part]=1") == [first["id"]]
    assert ids(client, "metadata[job]=a&status=queued") == [second["id"]]
    change(tmp_path, "UPDATE jobs SET created_at = 1000.9 WHERE id = ?", first["id"])
    assert ids(client, "created_before=1001") == ids(client, "created_after=1000&created_before=1001") == [first["id"]]
    assert ids(client, "created_after=1001") == [plain["id"], second["id"]]
    page = client.get("/v1/videos?metadata[job]=a&limit=1").json()
    assert (page["data"][0]["id"], page["has_more"]) == (second["id"], True)
    assert ids(client, f"metadata[job]=a&limit=1&after={page['last_id']}") == [first["id"]]


@pytest.mark.parametrize(
    ("query", "param", "expected"),
    [
        ("status=done", "status", "'queued', 'in_progress', 'completed' or 'failed'"),
        ("created_after=yesterday", "created_after", "a number"),
        ("created_before=99999999999999999999", "created_before", "less than or equal to 253402300799"),
        ("metadata=a", "metadata", "a valid dictionary"),
        ("metadata[a b]=x", "metadata", "match pattern"),
        ("metadata[a]=%00", "metadata", "match pattern"),
        ("metadata[a]=x&metadata[a]=y", "metadata[a]", "it once"),
        ("metadata=x&metadata[a]=y", "metadata[a]", "it once"),
        ("limit[a]=1", "limit[a]", "one of after, limit, order, status, created_after, created_before, metadata"),
        ("metadata[a][b]=1", "metadata[a][b]", "one of after"),
        ("statu=failed", "statu", "one of after"),
    ],
)
def test_a_filter_that_cannot_be_applied_is_refused(client: LocalClient, query: str, param: str, expected: str) -> None:
    response = client.get(f"/v1/videos?{query}")
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert error["param"] == param
    assert expected in error["message"]


@pytest.mark.parametrize(
    "metadata",
    [
        {"a b": "x"},
        {"a" * 65: "x"},
        {"": "x"},
        {"a": 1},
        {"a": "x" * 513},
        {"a": "\0"},
        {"a": None},
        {str(n): "" for n in range(17)},
        "x",
    ],
    ids=lambda value: str(value)[:20],
)
def test_metadata_that_cannot_be_stored_or_searched_is_refused(client: LocalClient, metadata: object) -> None:
    response = client.post("/v1/videos", json=SMALL | {"metadata": metadata})
    assert response.status_code == 400, response.text
    assert response.json()["error"]["param"] == "metadata"


def test_metadata_belongs_to_the_request_that_an_idempotency_key_names(client: LocalClient) -> None:
    key = {"Idempotency-Key": "k"}
    first = record(client, key, metadata={"a": "1", "b": "2"})
    assert record(client, key, metadata={"b": "2", "a": "1"}) == first
    assert client.post("/v1/videos", json=SMALL | {"metadata": {"a": "2"}}, headers=key).status_code == 409


def test_the_document_names_every_artifact(client: LocalClient) -> None:
    content = client.get("/openapi.json").json()["paths"]["/v1/videos/{video_id}/content"]["get"]
    (variant,) = [parameter["schema"] for parameter in content["parameters"] if parameter["name"] == "variant"]
    names, _ = variant["anyOf"]  # or none, for the main one
    assert names["enum"] == list(MEDIA_TYPES)
    assert set(content["responses"]["200"]["content"]) == set(MEDIA_TYPES.values()) == set(EXTENSIONS)


def test_the_document_names_every_filter(client: LocalClient) -> None:
    parameters = client.get("/openapi.json").json()["paths"]["/v1/videos"]["get"]["parameters"]
    assert {parameter["name"] for parameter in parameters} == set(ListQuery.model_fields)
    (metadata,) = [parameter for parameter in parameters if parameter["name"] == "metadata"]
    assert (metadata["style"], metadata["explode"]) == ("deepObject", True)
    assert "metadata[name]" in metadata["description"]


@pytest.mark.filterwarnings("ignore:The Sora API:DeprecationWarning")
def test_the_openai_client_sends_metadata_and_filters_by_it(client: LocalClient) -> None:
    sdk = openai.OpenAI(base_url=f"{URL}/v1", api_key="unused", http_client=client, max_retries=0)
    video = sdk.videos.create(prompt="x", seconds="1", extra_body={"metadata": {"job": "a", "part": "1"}})
    assert int(video.seconds) == 1
    assert video.model_extra is not None
    assert video.model_extra["metadata"] == {"job": "a", "part": "1"}
    for job, found in (("a", [video.id]), ("b", [])):
        query = {"metadata": {"job": job}, "status": "queued"}
        assert [listed.id for listed in sdk.videos.list(limit=5, extra_query=query)] == found
