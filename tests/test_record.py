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
