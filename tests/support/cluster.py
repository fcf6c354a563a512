"""Fixtures: one Ray cluster and one server for the whole run."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from paths import ROOT
from running_server import Server, free_port, serve_config, wait_until_healthy

os.environ["RAY_metrics_report_interval_ms"] = "2000"  # noqa: SIM112  # by default ten seconds
# Ray starts its workers at niceness 15, and anything else that computes on the machine would starve them.
os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112


@pytest.fixture(scope="session")
def cluster() -> Iterator[str]:
    """The address of a Ray cluster of this test run's own, in which Serve soon sees that its proxy died."""
    os.environ["RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S"] = "2"
    context = ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False)
    yield context.address_info["gcs_address"]
    ray.shutdown()


@pytest.fixture(scope="session")
def server(cluster: str, tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """deploy.yaml as it stands but for the checkpoint and a free port, started by ``serve run``."""
    port, folder = free_port(), tmp_path_factory.mktemp("serve")
    (folder / "deploy.yaml").write_text(serve_config(port, tiny_checkpoint, folder / "data"))
    command = [sys.executable, "-m", "ray.serve.scripts", "run", "--address", cluster, str(folder / "deploy.yaml")]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT)
        try:
            running = Server(f"http://127.0.0.1:{port}")
            wait_until_healthy(running, process, folder / "log")
            yield running
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(timeout=60)
