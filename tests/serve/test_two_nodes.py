"""Two nodes, one PostgreSQL, two ingress replicas and two runners: the real graph, and a node that dies."""

import io
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import httpx
import pytest
import yaml
from paths import ROOT
from postgres import Postgres, binaries
from ray.cluster_utils import Cluster
from running_server import Server, ended_job, free_port, serve_config, wait_until_healthy

REQUEST = {"prompt": "a ball", "size": "96x64", "num_frames": 9, "num_inference_steps": 6, "generate_sound": True}
JOBS = 4
END_S = 120

pytestmark = pytest.mark.faults


@pytest.fixture
def two_nodes(tiny_checkpoint: Path, tmp_path: Path) -> Iterator[tuple[str, Cluster, Any]]:
    """The server's URL, the cluster and its second node."""
    if binaries() is None:
        pytest.skip("PostgreSQL is not installed")
    postgres = Postgres(free_port())
    postgres.start()
    head: dict[str, Any] = {"num_cpus": 2, "include_dashboard": False}
    head["_system_config"] = {"health_check_period_ms": 1000}  # five in vain, and the node is dead
    cluster = Cluster(initialize_head=True, head_node_args=head)
    second = cluster.add_node(num_cpus=2)
    port = free_port()
    config = yaml.safe_load(serve_config(port, tiny_checkpoint, tmp_path / "data"))
    config["proxy_location"] = "HeadOnly"  # both nodes share this machine's ports
    application = config["applications"][0]
    application["args"] |= {"database_url": postgres.url, "media_url": f"file://{tmp_path}/media"}
    for deployment in application["deployments"]:
        if deployment["name"] in ("Ingress", "JobRunner"):
            deployment |= {"num_replicas": 2, "max_replicas_per_node": 1}
    (tmp_path / "deploy.yaml").write_text(yaml.safe_dump(config))
    command = [sys.executable, "-m", "ray.serve.scripts", "run", "--address", cluster.address]
    with (tmp_path / "log").open("w") as log:
        server = subprocess.Popen([*command, str(tmp_path / "deploy.yaml")], cwd=ROOT, stdout=log, stderr=log)
    url = f"http://127.0.0.1:{port}"
    wait_until_healthy(Server(url), server, tmp_path / "log")
    yield url, cluster, second
    server.kill()
    server.wait()
    cluster.shutdown()
    postgres.remove()


def test_the_jobs_of_a_node_that_dies_are_done_on_the_other(two_nodes: tuple[str, Cluster, Any]) -> None:
    url, cluster, second = two_nodes
    jobs = [
        httpx.post(f"{url}/v1/videos", json=REQUEST | {"seed": seed // 2}, timeout=60).json()["id"]
        for seed in range(2 * JOBS)
    ]
    ended_job(url, jobs[0], time.monotonic() + END_S)
    cluster.remove_node(second, allow_graceful=False)
    records = [ended_job(url, job, time.monotonic() + END_S) for job in jobs]
    assert [record["status"] for record in records] == ["completed"] * 2 * JOBS
    videos = [httpx.get(f"{url}/v1/videos/{job}/content", timeout=60).content for job in jobs]
    assert videos[::2] == videos[1::2], "the same seed gives the same bytes on whichever node"
    with av.open(io.BytesIO(videos[0])) as video:
        assert len(list(video.decode(video=0))) == REQUEST["num_frames"]
