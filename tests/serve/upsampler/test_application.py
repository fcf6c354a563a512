"""An application with the stage under Ray Serve: handles reach it, jobs pass it, and its death loses none of them."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_chat import FakeChat, chatting, silent, well
from fakes import fake_application, picklable
from ray import serve
from running_server import ray_process

from serve.app import AppArgs

REQUEST = {"prompt": "a ball", "size": "32x32", "num_frames": 5, "num_inference_steps": 2, "prompt_upsampling": True}
DEADLINE_S = 120

pytestmark = pytest.mark.usefixtures("server")


@pytest.fixture(scope="module")
def application(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, FakeChat]]:
    """Its handle, and the chat server."""
    with chatting() as chat, picklable():
        args = AppArgs(
            checkpoint=str(tiny_checkpoint),
            data_dir=str(tmp_path_factory.mktemp("upsampled")),
            prompt_upsampler={"base_url": chat.url, "model": "m"},
        )
        yield serve.run(fake_application(args, 0.01), name="upsampled", route_prefix="/upsampled"), chat
        serve.delete("upsampled")


def completed(handle: Any, video_id: str) -> dict[str, Any]:
    deadline = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline:
        record: dict[str, Any] = handle.retrieve.remote(video_id).result()
        if record["status"] in ("completed", "failed"):
            return record
        time.sleep(0.1)
    raise TimeoutError(record)


def test_calls_and_jobs_pass_the_stage(application: tuple[Any, FakeChat]) -> None:
    handle, chat = application
    direct = handle.generate.remote(REQUEST).result()["record"]
    jobs = [handle.submit.remote(REQUEST | {"prompt": f"ball {number}"}).result() for number in range(3)]
    records = [completed(handle, job["id"]) for job in jobs]
    for record in (direct, *records):
        assert f"upsampled {record['prompt']}" in record["revised_prompt"]
        assert record["prompt_upsampling_error"] is None
        assert record["stage_durations"]["prompt_upsampler"] > 0
    assert sorted(chat.prompts) == ["a ball", "ball 0", "ball 1", "ball 2"]


def test_a_replica_that_dies_is_replaced_and_the_prompt_asked_for_again(application: tuple[Any, FakeChat]) -> None:
    handle, chat = application
    chat.requests.clear()
    chat.script = [silent, well]
    job = handle.submit.remote(REQUEST).result()
    deadline = time.monotonic() + DEADLINE_S
    while not chat.requests and time.monotonic() < deadline:
        time.sleep(0.05)
    ray_process("ServeReplica:upsampled:PromptUpsampler").kill()
    record = completed(handle, job["id"])
    assert (record["status"], record["prompt_upsampling_error"]) == ("completed", None)
    assert "upsampled a ball" in record["revised_prompt"]
    assert chat.prompts == ["a ball"] * 2
