"""``webhook_url`` of a request: where it is accepted, and what deploy.yaml must say for that."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from answers import check_error
from local_api import LocalClient, local_client
from paths import ROOT
from pydantic import ValidationError
from receiver import SECRET, webhook_args

from serve.app import AppArgs, build_app
from serve.check import problems
from serve.errors import InvalidRequest
from serve.ingress.derived_requests import extended
from serve.ingress.ingress import Ingress
from serve.inputs.reference import StoredVideo
from serve.jobs.job import Job
from serve.schema import read_request

TARGET = "https://hooks.example.com/cosmos3"
URL = f"{TARGET}/1?token=hunter2"
FIELDS = {"prompt": "x", "webhook_url": URL}


@pytest.fixture
def client(tmp_path: Path) -> Iterator[LocalClient]:
    with local_client(tmp_path, **webhook_args(tmp_path, TARGET)) as opened:
        yield opened


def job_of(client: LocalClient, video_id: str) -> Job:
    job: Job = client.call(client.service.videos.table.get, video_id)
    return job


def check_refused(response: httpx.Response, told: str) -> None:
    error = check_error(response, 400, "invalid_value")
    assert error["param"] == "webhook_url"
    assert told in error["message"]


def test_the_url_is_stored_and_not_shown(client: LocalClient) -> None:
    for body in ({"json": FIELDS}, {"data": FIELDS}, {"files": {name: (None, text) for name, text in FIELDS.items()}}):
        response = client.post("/v1/videos", **body)
        assert response.status_code == 200, response.text
        assert job_of(client, response.json()["id"]).webhook_url == URL
        assert "hunter2" not in response.text


def test_a_handle_call_may_have_one(client: LocalClient) -> None:
    record = client.call(client.service.submit, FIELDS)
    assert job_of(client, record["id"]).webhook_url == URL


def test_a_derived_video_has_one_of_its_own_alone(client: LocalClient) -> None:
    client.submit(**FIELDS)
    source = client.call(client.service.finish)
    for given in ({}, {"webhook_url": URL}):
        response = client.post(f"/v1/videos/{source}/remix", json={"prompt": "y"} | given)
        assert response.status_code == 200, response.text
        assert job_of(client, response.json()["id"]).webhook_url == given.get("webhook_url")
        extension = extended(job_of(client, source), read_request({"prompt": "y"} | given), StoredVideo(source))
        assert extension.webhook_url == given.get("webhook_url")


def test_the_same_request_with_another_url_is_another_request(client: LocalClient) -> None:
    for url, status in ((URL, 200), (URL, 200), (TARGET, 409)):
        response = client.post(
            "/v1/videos", json=FIELDS | {"webhook_url": url, "seed": 1}, headers={"Idempotency-Key": "k"}
        )
        assert response.status_code == status, response.text


def test_another_url_is_refused(client: LocalClient) -> None:
    for url in ("https://hooks.example.com/other", "x", "", 5):
        for route in ("videos", "videos/estimate"):
            check_refused(client.post(f"/v1/{route}", json=FIELDS | {"webhook_url": url}), "webhook_url: got")


def test_a_server_without_targets_says_how_to_have_some(tmp_path: Path) -> None:
    with local_client(tmp_path) as client:
        response = client.post("/v1/videos", json=FIELDS)
        check_refused(response, "until its deploy.yaml lists webhook_targets")
        assert "hunter2" not in response.text


def test_a_request_whose_client_waits_has_none(client: LocalClient) -> None:
    with pytest.raises(InvalidRequest, match="expected no such field here, because the response is the video"):
        client.call(Ingress.make, client.service, read_request(FIELDS))
    check_refused(client.post("/v1/images/generations", json=FIELDS), "this field is unknown")


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "no URL": ({"webhook_targets": ["hooks.example.com"]}, "webhook_targets.0: got 'hooks.example.com', expected"),
    "no file named": ({"webhook_targets": [TARGET]}, "webhook_secrets_file: got none, expected a file, because"),
    "no file": ({"webhook_secrets_file": "/nowhere/file"}, "webhook_secrets_file: got /nowhere/file, expected"),
    "a relative file": ({"webhook_secrets_file": "file"}, "webhook_secrets_file: got 'file', expected"),
}


@pytest.mark.parametrize(("args", "problem"), BAD.values(), ids=BAD)
def test_webhooks_that_could_not_be_sent_keep_the_server_from_starting(args: dict[str, Any], problem: str) -> None:
    config = yaml.safe_load((ROOT / "deploy.yaml").read_text())
    config["applications"][0]["args"] |= args
    (found,) = problems(yaml.safe_dump(config))
    assert found.startswith(problem)
    with pytest.raises((ValueError, ValidationError)):
        build_app(AppArgs(device="cpu", **args))


@pytest.mark.parametrize(
    ("content", "told"),
    [("", "no secret in"), (f"# ours\n{SECRET}", "a comment in line 1"), ("whsec_hunter2", "no secret in line 1")],
)
def test_a_file_without_secrets_keeps_the_server_from_starting(tmp_path: Path, content: str, told: str) -> None:
    args = webhook_args(tmp_path, TARGET)
    Path(args["webhook_secrets_file"]).write_text(content)
    with pytest.raises(ValueError, match=told) as error:
        build_app(AppArgs(device="cpu", **args))
    assert SECRET not in str(error.value) and "hunter2" not in str(error.value)
