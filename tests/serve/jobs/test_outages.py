"""Database and media store go away under running jobs, and deployments are replaced: jobs come through."""

import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from fakes import fake_application, picklable
from postgres import Postgres, binaries
from ray import serve
from running_server import LEASE_S, Server, free_port

from serve.app import AppArgs

REQUEST = {"prompt": "x", "size": "32x32", "num_frames": 5, "num_inference_steps": 10}
STEP_S = 0.2

pytestmark = pytest.mark.faults


@dataclass
class Application:
    """The fake application over a PostgreSQL and a media folder that the test may take away."""

    url: str
    args: AppArgs
    postgres: Postgres
    media: Path

    def deploy(self, step_s: float = STEP_S, runners: int = 1) -> None:
        with picklable():
            application = fake_application(self.args, step_s, runners=runners)
            serve.run(application, name="outages", route_prefix="/outages")

    def submit(self) -> str:
        response = httpx.post(self.url, json=REQUEST, timeout=60)
        assert response.status_code == 200, response.text
        return str(response.json()["id"])

    def get(self, video: str) -> dict[str, Any]:
        record: dict[str, Any] = httpx.get(f"{self.url}/{video}", timeout=60).json()
        return record

    def wait_for(self, video: str, *statuses: str, step: int = 0) -> dict[str, Any]:
        deadline = time.monotonic() + 90
        while (record := self.get(video)).get("status") not in statuses or record["step"] < step:
            assert time.monotonic() < deadline, record
            time.sleep(0.1)
        return record


@pytest.fixture(scope="module")
def application(
    server: Server, tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Application]:
    if binaries() is None:
        pytest.skip("PostgreSQL is not installed")
    folder = tmp_path_factory.mktemp("outages")
    postgres = Postgres(free_port())
    postgres.start()
    media = folder / "media"
    args = AppArgs(checkpoint=str(tiny_checkpoint), database_url=postgres.url, media_url=str(media), lease_s=LEASE_S)
    running = Application(f"{server.url}/outages/v1/videos", args, postgres, media)
    running.deploy(runners=2)
    yield running
    serve.delete("outages")
    postgres.remove()


def test_a_job_outlives_a_database_that_goes_away_and_comes_back(application: Application) -> None:
    running, waiting = application.submit(), application.submit()
    application.wait_for(running, "in_progress", step=2)
    application.postgres.stop(signal.SIGQUIT)
    refused = httpx.post(application.url, json=REQUEST, timeout=60)
    assert refused.status_code == 503
    assert refused.json()["error"]["code"] == "database_unavailable"
    assert int(refused.headers["retry-after"]) >= 1
    health = httpx.get(application.url.replace("/v1/videos", "/health"), timeout=60)
    assert health.status_code == 503
    assert health.json()["error"]["message"].startswith("not ready: database")
    time.sleep(LEASE_S)
    application.postgres.start()
    for video in (running, waiting):
        record = application.wait_for(video, "completed", "failed")
        assert record["status"] == "completed"
        assert record["attempts"] <= 2
        assert httpx.get(f"{application.url}/{video}/content", timeout=60).status_code == 200


def test_a_job_outlives_a_database_that_stands_still_for_longer_than_a_lease(application: Application) -> None:
    """As when its host is cut off: connections stay open, and nothing answers."""
    running, waiting = application.submit(), application.submit()
    application.wait_for(running, "in_progress", step=2)
    with application.postgres.frozen():
        refused = httpx.post(application.url, json=REQUEST, timeout=60)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "database_unavailable")
        time.sleep(LEASE_S)
    for video in (running, waiting):
        record = application.wait_for(video, "completed", "failed")
        assert record["status"] == "completed"
        assert record["attempts"] <= 2


def test_a_finished_video_outwaits_a_media_store_that_refuses(application: Application) -> None:
    away = application.media.with_name("away")
    video = application.submit()
    application.wait_for(video, "in_progress", step=2)
    application.media.rename(away)
    deadline = time.monotonic() + 60
    while application.get(video)["stage"] != "storing":
        assert time.monotonic() < deadline
        time.sleep(0.1)
    time.sleep(1)
    assert application.get(video)["status"] == "in_progress", "there is no video without its file"
    away.rename(application.media)
    record = application.wait_for(video, "completed", "failed")
    assert (record["status"], record["attempts"]) == ("completed", 1)


def test_an_update_and_a_downscale_let_running_jobs_finish(application: Application) -> None:
    videos = [application.submit() for _ in range(4)]
    application.wait_for(videos[0], "in_progress", step=1)
    application.args = application.args.model_copy(update={"lease_s": LEASE_S + 1})
    application.deploy(step_s=STEP_S / 2, runners=1)
    records = [application.wait_for(video, "completed", "failed") for video in videos]
    assert [(record["status"], record["attempts"]) for record in records] == [("completed", 1)] * 4
