"""The Grafana dashboard against the series of a run that had some of everything, alone and through Prometheus."""

import json
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import ray
import yaml
from paths import ROOT
from receiver import receiving
from running_server import WEBHOOK, WEBHOOK_PORT, Server, free_port
from sample_requests import ENDLESS, REQUEST

DEPLOY = ROOT / "deploy"
DASHBOARD = json.loads((DEPLOY / "grafana.json").read_text())
PANELS = DASHBOARD["panels"]
EXPRESSIONS = sorted({target["expr"] for panel in PANELS for target in panel["targets"]})
SERIES = re.compile(r"\bray_\w+")
PROMETHEUS = shutil.which("prometheus")
PATIENCE_S = 90  # Ray's processes report every ten seconds


def wait_for(condition: Callable[[], Any]) -> Any:
    """The first true result, or the last one."""
    deadline = time.monotonic() + PATIENCE_S
    while not (result := condition()) and time.monotonic() < deadline:
        time.sleep(0.2)
    return result


class Jobs:
    """The video routes of a server."""

    def __init__(self, server: Server) -> None:
        self._url = f"{server.url}/v1/videos"

    def submit(self, request: dict[str, Any]) -> str:
        return str(httpx.post(self._url, json=request, timeout=60).raise_for_status().json()["id"])

    def wait_until(self, video_id: str, condition: Callable[[dict[str, Any]], bool]) -> None:
        assert wait_for(lambda: condition(httpx.get(f"{self._url}/{video_id}", timeout=60).raise_for_status().json()))

    def delete(self, video_id: str) -> None:
        httpx.delete(f"{self._url}/{video_id}", timeout=60).raise_for_status()


@pytest.fixture(scope="module")
def metrics_address(server: Server) -> str:
    """Where the series of a cluster are after a finished job with a webhook, one that was begun twice and then stopped,
    and one that was cancelled while it waited."""
    jobs = Jobs(server)
    with receiving(port=WEBHOOK_PORT) as receiver:
        first = jobs.submit(REQUEST | {"webhook_url": WEBHOOK})
        assert receiver.wait_for(1)[0].event().data.id == first
    endless = jobs.submit(ENDLESS)
    jobs.wait_until(endless, lambda video: video["stage"] == "denoiser")
    server.process("Denoiser").kill()
    jobs.wait_until(endless, lambda video: video["attempts"] == 2)
    server.handle.cancel.remote(jobs.submit(REQUEST)).result()
    jobs.delete(endless)
    (node,) = ray.nodes()
    return f"{node['NodeManagerAddress']}:{node['MetricsExportPort']}"


def test_the_dashboard_is_whole() -> None:
    ids = [panel["id"] for panel in PANELS]
    assert len(ids) == len(set(ids))
    assert len({panel["title"] for panel in PANELS}) == len(PANELS)
    for panel in PANELS:
        assert panel["datasource"]["uid"] == "${datasource}"
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"]) > 0
    (variable,) = DASHBOARD["templating"]["list"]
    assert (variable["name"], variable["type"]) == ("datasource", "datasource")


def test_no_panel_lies_on_another() -> None:
    cells = [
        (x, y)
        for place in (panel["gridPos"] for panel in PANELS)
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(cells) == len(set(cells))
    assert max(x for x, _ in cells) < 24


def test_every_series_of_the_jobs_has_a_panel() -> None:
    ours = {f"ray_{name}" for name in re.findall(r'"(cosmos3_\w+)"', (ROOT / "serve/jobs/metrics.py").read_text())}
    shown = {re.sub("_(bucket|sum)$", "", name) for name in SERIES.findall(" ".join(EXPRESSIONS))}
    assert ours
    assert ours <= shown


def test_every_series_of_the_dashboard_is_exposed(metrics_address: str) -> None:
    named = set(SERIES.findall(" ".join(EXPRESSIONS)))

    def missing() -> set[str]:
        text = httpx.get(f"http://{metrics_address}/metrics", timeout=30).text
        return named - set(re.findall(r"^(ray_\w+)\{", text, re.MULTILINE))

    wait_for(lambda: not missing())
    assert not missing()


def test_jobs_that_no_runner_ended_are_counted_by_state(metrics_address: str) -> None:
    series = re.compile(r"^ray_cosmos3_jobs_total\{.*state=\"(\w+)\"", re.MULTILINE)

    def states() -> set[str]:
        return set(series.findall(httpx.get(f"http://{metrics_address}/metrics", timeout=30).text))

    expected = {"completed", "cancelled", "deleted"}
    wait_for(lambda: expected <= states())
    assert expected <= states()


@pytest.fixture
def prometheus(metrics_address: str, tmp_path: Path) -> Iterator[str]:
    """The address of a Prometheus with the configuration of deploy/, but for the list of nodes and the pace."""
    config = yaml.safe_load((DEPLOY / "prometheus.yml").read_text())
    (tmp_path / "nodes.json").write_text(json.dumps([{"targets": [metrics_address]}]))
    config["scrape_configs"][0]["file_sd_configs"][0]["files"] = [str(tmp_path / "nodes.json")]
    config["global"]["scrape_interval"] = "1s"
    (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(config))
    address = f"127.0.0.1:{free_port()}"
    folders = (f"--config.file={tmp_path / 'prometheus.yml'}", f"--storage.tsdb.path={tmp_path / 'data'}")
    with (tmp_path / "log").open("w") as log:
        command = [str(PROMETHEUS), *folders, f"--web.listen-address={address}"]
        with subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT) as process:
            yield f"http://{address}"
            process.terminate()


@pytest.mark.skipif(PROMETHEUS is None, reason="there is no Prometheus")
def test_every_expression_has_a_result_in_prometheus(prometheus: str) -> None:
    def result(expression: str) -> list[Any]:
        query = {"query": expression.replace("$__rate_interval", "1m")}
        try:
            answer = httpx.get(f"{prometheus}/api/v1/query", params=query, timeout=30)
        except httpx.TransportError:
            return []
        if answer.status_code == 503:  # it starts
            return []
        assert answer.status_code == 200, answer.text
        found: list[Any] = answer.json()["data"]["result"]
        return found

    for expression in EXPRESSIONS:
        assert wait_for(lambda expression=expression: result(expression)), expression
