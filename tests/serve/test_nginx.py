"""The shipped configuration of nginx, but for its ports, in front of the real server."""

import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from answers import check_error
from paths import ROOT
from running_server import Server, free_port
from sample_media import clip
from sample_requests import ENDLESS, REQUEST

from serve.app import AppArgs
from serve.http.limits import MAX_BYTES_IN_ALL

SITE = (ROOT / "deploy" / "nginx.conf").read_text()
NGINX = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")
MAIN = """
{user}
daemon off;
pid {folder}/pid;
error_log stderr;
events {{}}
http {{
    access_log off;
    gzip on;  # as many sites have it: it holds back what a buffering proxy does not flush
    gzip_types text/event-stream;
    gzip_min_length 1;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    include {folder}/site.conf;
}}
"""

pytestmark = pytest.mark.skipif(NGINX is None, reason="nginx is not installed")


def changed(text: str, *pairs: tuple[str, str]) -> str:
    for right, other in pairs:
        assert text.count(right) == 1
        text = text.replace(right, other)
    return text


@contextmanager
def nginx(server: Server, folder: Path, *changes: tuple[str, str]) -> Iterator[str]:
    """The URL of an nginx with the shipped site, but for ``changes``."""
    port = free_port()
    upstream = server.url.removeprefix("http://")
    site = changed(SITE, ("127.0.0.1:8000", upstream), ("listen 80", f"listen 127.0.0.1:{port}"), *changes)
    (folder / "site.conf").write_text(site)
    user = "user root;" if os.geteuid() == 0 else ""  # else its workers could not read the folder
    (folder / "nginx.conf").write_text(MAIN.format(folder=folder, user=user))
    with (folder / "log").open("w") as log:
        command = [str(NGINX), "-c", str(folder / "nginx.conf"), "-p", str(folder)]
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    try:
        url = f"http://127.0.0.1:{port}"
        wait_until_it_answers(url, process, folder / "log")
        yield url
    finally:
        process.terminate()
        process.wait(timeout=60)


def wait_until_it_answers(url: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            httpx.get(f"{url}/health", timeout=30).raise_for_status()
            return
        except httpx.TransportError:
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline
            time.sleep(0.05)


@pytest.fixture(scope="module")
def proxied(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with nginx(server, tmp_path_factory.mktemp("nginx")) as url:
        yield url


def test_its_limits_follow_from_those_of_the_server() -> None:
    (size,) = re.findall(r"client_max_body_size (\d+)m;", SITE)
    assert int(size) << 20 >= MAX_BYTES_IN_ALL
    (timeout,) = re.findall(r"proxy_read_timeout (\d+)s;", SITE)
    assert int(timeout) >= AppArgs().longest_request_s


def test_a_video_its_headers_and_an_error_come_through_unchanged(server: Server, proxied: str) -> None:
    through, direct = (httpx.post(f"{url}/v1/videos/sync", json=REQUEST, timeout=120) for url in (proxied, server.url))
    assert through.status_code == 200, through.text
    assert through.content == direct.content
    assert through.headers["x-seed"] == "42"
    refused = httpx.post(f"{proxied}/v1/videos", json={"prompt": ""}, headers={"x-request-id": "abc"}, timeout=60)
    check_error(refused, 400, "invalid_value")
    assert refused.headers["x-request-id"] == "abc"


def test_a_page_has_the_origin_that_the_server_sees(proxied: str) -> None:
    headers = {"origin": proxied, "sec-fetch-site": "cross-site"}
    assert httpx.get(f"{proxied}/v1/models", headers=headers, timeout=60).status_code == 200
    foreign = httpx.get(f"{proxied}/v1/models", headers=headers | {"origin": "http://example.com"}, timeout=60)
    check_error(foreign, 403, "origin_not_allowed")


def test_events_of_a_job_that_never_ends_arrive_as_they_happen(proxied: str) -> None:
    jobs = f"{proxied}/v1/videos"
    job = httpx.post(jobs, json=ENDLESS, timeout=60).raise_for_status().json()["id"]
    try:
        with httpx.stream("GET", f"{jobs}/{job}/events", timeout=120) as response:
            events = events_in(response)
            while next(events).get("step", 0) < 2:
                pass
            assert httpx.get(f"{jobs}/{job}", timeout=60).json()["status"] == "in_progress"
            httpx.delete(f"{jobs}/{job}", timeout=60).raise_for_status()
            *_, last = events
            assert last == {"type": "deleted"}
    finally:
        httpx.delete(f"{jobs}/{job}", timeout=60)


def events_in(response: httpx.Response) -> Iterator[dict[str, Any]]:
    for line in response.iter_lines():
        if line.startswith("data: "):
            yield json.loads(line.removeprefix("data: "))


def test_a_clip_of_50_mb_comes_through(proxied: str) -> None:
    padding = 50 << 20
    large = clip() + padding.to_bytes(4, "big") + b"free" + bytes(padding - 8)  # a box that readers skip
    fields = {"prompt": "x", "size": "64x48", "num_frames": "9", "num_inference_steps": "1"}
    answer = httpx.post(f"{proxied}/v1/videos", data=fields, files={"input_reference": large}, timeout=120)
    assert answer.status_code == 200, answer.text
    assert answer.json()["input_reference"]["width"] == 64
    httpx.delete(f"{proxied}/v1/videos/{answer.json()['id']}", timeout=60).raise_for_status()


def test_a_request_that_is_silent_for_longer_than_the_timeout_is_cut_off(server: Server, tmp_path: Path) -> None:
    """Why the shipped timeout is as long as the longest request."""
    with nginx(server, tmp_path, ("proxy_read_timeout 3600s", "proxy_read_timeout 1s")) as url:
        assert httpx.post(f"{url}/v1/videos/sync", json=ENDLESS, timeout=60).status_code == 504
