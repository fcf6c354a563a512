"""A batch of jobs through which something breaks."""

import base64
import time
from typing import Any

import httpx
from running_server import ended_job, job_record
from sample_media import picture

REQUEST = {"prompt": "a ball", "size": "192x128", "num_frames": 9, "num_inference_steps": 10, "generate_sound": True}
JOBS = 3
PICTURED = 1  # the seed of the job that begins with a picture; it works while the first one decodes
PICTURED_STEPS = 60  # so that it still works when a test has seen it begin
RECOVERY_S = 180  # Serve notices a dead proxy after six seconds; a busy machine needs far longer for the rest


def request(seed: int) -> dict[str, Any]:
    """The request of one of the jobs."""
    if seed != PICTURED:
        return REQUEST | {"seed": seed}
    url = "data:image/png;base64," + base64.b64encode(picture()).decode()
    return REQUEST | {"seed": seed, "num_inference_steps": PICTURED_STEPS, "input_reference": {"image_url": url}}


class Batch:
    """A batch of jobs through which something is killed."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._jobs: list[str] = []

    def submit(self, jobs: int = JOBS, **fields: Any) -> None:
        """Submit jobs, each with further fields."""
        for seed in range(jobs):
            response = httpx.post(f"{self._url}/v1/videos", json=request(seed) | fields, timeout=60)
            assert response.status_code == 200, response.text
            self._jobs.append(response.json()["id"])

    def wait_for_step(self, job: int, step: int) -> None:
        deadline = time.monotonic() + 60
        while True:
            record = job_record(self._url, self._jobs[job])
            if record and (record["step"] >= step or record["status"] == "completed"):
                return
            assert time.monotonic() < deadline, record
            time.sleep(0.02)

    def wait_for_jobs(self, count: int) -> None:
        """Until the server holds so many, other clients' among them."""
        deadline = time.monotonic() + 60
        while len(httpx.get(f"{self._url}/v1/videos", timeout=60).json()["data"]) < count:
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def finish(self) -> list[dict[str, Any]]:
        """The records of all jobs, once all have ended."""
        deadline = time.monotonic() + RECOVERY_S
        return [ended_job(self._url, job, deadline) for job in self._jobs]

    def videos(self) -> list[bytes]:
        return [httpx.get(f"{self._url}/v1/videos/{job}/content", timeout=60).content for job in self._jobs]

    def delete(self) -> None:
        for job in self._jobs:
            httpx.delete(f"{self._url}/v1/videos/{job}", timeout=60)
