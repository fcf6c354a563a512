"""A batch on the real server, with real videos."""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import av
import httpx
from running_server import Server
from sample_media import clip, picture

from serve.client import batch

SMALL = {"size": "96x64", "num_frames": 9, "num_inference_steps": 20}
WAIT_S = 120


def test_a_batch_that_is_killed_is_finished_by_the_next_run_with_the_servers_bytes(
    server: Server, tmp_path: Path
) -> None:
    (tmp_path / "ball.png").write_bytes(picture())
    (tmp_path / "clip.mp4").write_bytes(clip())
    requests: list[dict[str, Any]] = [{"prompt": f"a red ball {number}"} for number in range(5)]
    requests += [{"prompt": "a star", "input_reference": name} for name in ("ball.png", "clip.mp4")]
    requests += [{"prompt": "a square", "generate_sound": True, "seed": 5, "name": "square"}]
    file, out = tmp_path / "prompts.jsonl", tmp_path / "out"
    file.write_text("".join(f"{json.dumps(SMALL | request)}\n" for request in requests))
    before = httpx.get(f"{server.url}/v1/videos?limit=1", timeout=60).json()["first_id"]

    command = [sys.executable, "-m", "serve", "batch", str(file), "--out", str(out), "--url", server.url]
    client = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + WAIT_S
    while not list(out.glob("*.json")):
        assert client.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    client.kill()
    client.wait()

    summary = batch.run(file, out, server.url)
    assert summary.complete
    assert summary.found >= 1
    after = {"order": "asc", "limit": "100"} | ({"after": before} if before else {})
    jobs = httpx.get(f"{server.url}/v1/videos", params=after, timeout=60).json()["data"]
    assert len(jobs) == len(requests), "none was made twice"
    for job, line in zip(jobs, (out / "metadata.jsonl").read_text().splitlines(), strict=True):
        row = json.loads(line)
        made = (out / row["file_name"]).read_bytes()
        assert made == httpx.get(f"{server.url}/v1/videos/{job['id']}/content", timeout=60).content
        assert (row["prompt"], row["seed"]) == (job["prompt"], job["seed"])
    with av.open(out / "square.mp4") as opened:
        assert [stream.type for stream in opened.streams] == ["video", "audio"]
