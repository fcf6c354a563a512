"""The guard over prompts: what it sees, what it refuses before anything is stored, and that it closes."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import scripted_guard
from answers import check_error
from local_api import LocalClient, LocalIngress, local_client
from ray.serve.exceptions import RayServeException
from sample_media import clip

from serve.app import AppArgs
from serve.check import argument_problems
from serve.guards.guard import PROBE

SCRIPTED = "scripted_guard:Scripted"
JOBS, SYNC, IMAGES = "/v1/videos", "/v1/videos/sync", "/v1/images/generations"
SMALL = {"size": "32x32"}


@contextmanager
def guarded(folder: Path, **settings: Any) -> Iterator[tuple[LocalClient, scripted_guard.Scripted]]:
    """A client of a guarded server, and the guard."""
    with local_client(folder, guard={"import_path": SCRIPTED} | settings) as client:
        method: Any = client.service._guard._method
        yield client, method.__self__
        method.__self__.released.set()


def stored(client: LocalClient, folder: Path) -> list[Path | str]:
    """All jobs, and all files of the media store."""
    jobs = [job["id"] for job in client.get(JOBS).json()["data"]]
    return [*jobs, *(path for path in (folder / "data" / "media").rglob("*") if path.is_file())]


@pytest.mark.parametrize("route", [JOBS, SYNC, IMAGES])
def test_a_refused_prompt_is_an_error_of_the_prompt_and_nothing_is_stored(tmp_path: Path, route: str) -> None:
    with guarded(tmp_path) as (client, _):
        error = check_error(client.post(route, json=SMALL | {"prompt": "a weapon"}), 400, "content_policy_violation")
        assert (error["param"], error["type"]) == ("prompt", "invalid_request_error")
        assert error["message"] == "prompt: refused by this server's content policy: no weapons"
        assert stored(client, tmp_path) == []
        assert client.post(route, json=SMALL | {"prompt": "a flower"}).status_code == 200


def test_a_remix_and_an_extension_have_their_prompts_checked(tmp_path: Path) -> None:
    with guarded(tmp_path) as (client, guard):
        client.submit(num_frames=17)
        source = client.call(client.service.finish, ("video", "thumbnail", "spritesheet"), clip())
        guard.asked.clear()
        for route, fields in ((f"{JOBS}/{source}/remix", {}), (f"{JOBS}/extensions", {"video": {"id": source}})):
            for prompt, status in (("a weapon", 400), ("a flower", 200)):
                response = client.post(route, json={"prompt": prompt} | fields)
                assert response.status_code == status, response.text
        assert guard.asked == ["a weapon", "a flower"] * 2


def test_handle_calls_are_checked_as_well(tmp_path: Path) -> None:
    service = LocalIngress(AppArgs(data_dir=str(tmp_path), guard=SCRIPTED))
    request = SMALL | {"prompt": "a weapon"}

    async def scene() -> None:
        for call in (service.generate(request), anext(service.stream(request)), service.submit(request)):
            with pytest.raises(RayServeException) as raised:
                await call
            assert (raised.value.code, raised.value.param) == ("content_policy_violation", "prompt")
        assert (await service.list())["data"] == []
        await service.videos.table.close()

    asyncio.run(scene())


def test_the_guard_sees_the_prompt_alone_and_no_estimate(tmp_path: Path) -> None:
    with guarded(tmp_path) as (client, guard):
        client.submit(prompt="a flower", negative_prompt="a weapon", metadata={"prompt": "a weapon"})
        assert client.post("/v1/videos/estimate", json={"prompt": "a weapon"}).status_code == 200
        assert guard.asked == [PROBE, "a flower"]


def test_an_invalid_request_does_not_reach_the_guard(tmp_path: Path) -> None:
    with guarded(tmp_path) as (client, guard):
        check_error(client.post(JOBS, json={"prompt": "a weapon", "num_frames": 10}), 400, "invalid_value")
        assert guard.asked == [PROBE]


@pytest.mark.parametrize("prompt", ["crash", "unclear"])
@pytest.mark.parametrize("route", [JOBS, SYNC, IMAGES])
def test_a_guard_that_fails_permits_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, route: str, prompt: str
) -> None:
    with guarded(tmp_path) as (client, _):
        error = check_error(client.post(route, json=SMALL | {"prompt": prompt}), 503, "guard_failed")
        assert "/secret/path" not in error["message"]
        assert "The guard failed on a prompt" in caplog.text
        assert stored(client, tmp_path) == []
        assert client.post(route, json=SMALL | {"prompt": "a flower"}).status_code == 200, "the next one is checked"


def test_a_guard_that_hangs_permits_nothing_until_it_answers(tmp_path: Path) -> None:
    with guarded(tmp_path, timeout_s=60) as (client, guard):
        checks = client.service._guard
        checks._settings = scripted_guard.settings(timeout_s=0.1)
        check_error(client.post(JOBS, json={"prompt": "hang"}), 503, "guard_failed")
        assert guard.hanging.wait(60)
        checks._settings = scripted_guard.settings(timeout_s=60)
        check_error(client.post(JOBS, json={"prompt": "a flower"}), 503, "guard_failed")
        assert guard.asked == [PROBE, "hang"], "the second waits for no answer"
        assert stored(client, tmp_path) == []
        overdue: Any = checks._overdue
        guard.released.set()
        client.call(asyncio.wait, [overdue])
        client.submit(prompt="a flower")


def test_a_caller_that_gives_up_leaves_a_guard_that_goes_on(tmp_path: Path) -> None:
    service = LocalIngress(AppArgs(data_dir=str(tmp_path), guard=SCRIPTED))
    method: Any = service._guard._method
    guard: scripted_guard.Scripted = method.__self__

    async def scene() -> None:
        left = asyncio.create_task(service._guard.check("hang"))
        await asyncio.to_thread(guard.hanging.wait, 60)
        left.cancel()
        following = asyncio.create_task(service._guard.check("a flower"))
        await asyncio.sleep(0)
        guard.released.set()
        await following
        await service.videos.table.close()

    asyncio.run(scene())
    assert guard.asked == [PROBE, "hang", "a flower"]


def test_without_a_guard_every_prompt_passes(tmp_path: Path) -> None:
    with local_client(tmp_path) as client:
        client.submit(prompt="a weapon")


def test_a_guard_of_frames_alone_is_not_made_for_prompts(tmp_path: Path) -> None:
    with local_client(tmp_path, guard="scripted_guard:FramesAlone") as client:
        client.submit(prompt="a weapon")


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("nowhere:Guard", "importing it raised ModuleNotFoundError: No module named 'nowhere'"),
        ("scripted_guard:Absent", "importing it raised AttributeError: module 'scripted_guard' has no attribute"),
        ("scripted_guard:Idle", "it has neither of the methods check_prompt and check_frames"),
        ("scripted_guard:Unmade", "its constructor raised FileNotFoundError: no weights"),
        ("scripted_guard:Broken", "its check_prompt raised OSError: no weights"),
    ],
)
def test_the_ingress_does_not_start_with_a_guard_that_cannot_check(tmp_path: Path, path: str, why: str) -> None:
    with pytest.raises(ValueError, match="guard: got") as raised:
        LocalIngress(AppArgs(data_dir=str(tmp_path), guard=path))
    assert why in str(raised.value)


def test_the_ingress_does_not_start_with_a_guard_that_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve.guards.guard.PROBE", "hang")
    made: list[scripted_guard.Scripted] = []
    original = scripted_guard.Scripted.__init__
    monkeypatch.setattr(scripted_guard.Scripted, "__init__", lambda self: made.append(self) or original(self))
    with pytest.raises(ValueError, match="its check_prompt raised TimeoutError"):
        LocalIngress(AppArgs(data_dir=str(tmp_path), guard={"import_path": SCRIPTED, "timeout_s": 0.1}))
    made[0].released.set()


@pytest.mark.parametrize(
    ("guard", "problem"),
    [
        ("nowhere:Guard", "guard: got 'nowhere:Guard', expected a class that checks prompts or frames, but importing"),
        ("scripted_guard", "guard.import_path: got 'scripted_guard', expected module:Class"),
        ({"options": {}}, "guard.import_path: Field required"),
        ({"import_path": SCRIPTED, "option": {"key": "hunter2"}}, "guard.option: Extra inputs are not permitted"),
        ({"import_path": SCRIPTED, "timeout_s": 0}, "guard.timeout_s: Input should be greater than 0"),
    ],
)
def test_the_check_before_the_start_finds_a_guard_that_cannot_be_used(guard: object, problem: str) -> None:
    (found,) = argument_problems({"guard": guard})
    assert found.startswith(problem)
    assert "hunter2" not in found
