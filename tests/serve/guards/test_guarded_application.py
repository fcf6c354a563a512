"""A guarded application beside the real one: what clients of the whole graph get, and what they do not."""

import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from answers import check_error
from paths import ROOT
from ray import serve
from running_server import Server, ended_job
from sample_requests import REQUEST

from serve import app

GUARD = {"import_path": "scripted_guard:Scripted", "options": {"brightest": -1}}  # no frame is so dark


@pytest.fixture(scope="module")
def guarded(server: Server, tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Its URL, below that of the server."""
    folder = tmp_path_factory.mktemp("guarded")
    args = app.AppArgs(checkpoint=str(tiny_checkpoint), data_dir=str(folder), guard=GUARD)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(app, "ENVIRONMENT", app.ENVIRONMENT | {"PYTHONPATH": str(ROOT / "tests" / "support")})
        serve.run(app.build_app(args), name="guarded", route_prefix="/guarded")
    yield f"{server.url}/guarded"
    serve.delete("guarded")


def test_refused_frames_reach_nobody(guarded: str) -> None:
    jobs = f"{guarded}/v1/videos"
    response = httpx.post(jobs, json=REQUEST | {"previews": 2}, timeout=60)
    assert response.status_code == 200, response.text
    record = ended_job(guarded, response.json()["id"], time.monotonic() + 120)
    message = "frames refused by this server's content policy: too bright"
    assert record["error"] == {"code": "content_policy_violation", "message": message}
    assert record["attempts"] == 1
    for variant in ("video", "thumbnail", "spritesheet", "preview"):
        answer = httpx.get(f"{jobs}/{record['id']}/content", params={"variant": variant}, timeout=60)
        check_error(answer, 404, "not_found")
    direct = httpx.post(f"{jobs}/sync", json=REQUEST, timeout=120)
    assert check_error(direct, 400, "content_policy_violation")["message"] == message


def test_a_refused_prompt_makes_no_job(guarded: str) -> None:
    answer = httpx.post(f"{guarded}/v1/videos", json=REQUEST | {"prompt": "a weapon"}, timeout=60)
    assert check_error(answer, 400, "content_policy_violation")["param"] == "prompt"
