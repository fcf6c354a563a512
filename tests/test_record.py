"""What a record says of its request and of the time that it took, and which records a list shows."""

import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from local_api import LocalClient, local_client

from cosmos3_models.params import MAX_SEED

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
    change(tmp_path, "UPDATE jobs SET fingerprint = NULL")
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
    shown = client.get(f"/v1/videos/{old['id']}").json()
    assert (shown["size"], shown["sigma_schedule"], shown["append_metadata"]) == ("32x33000", "old", True)
    assert shown in client.get("/v1/videos").json()["data"]
