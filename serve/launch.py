"""Starts Ray and Serve, says when every stage is ready, and after a signal lets what is being made finish."""

import os
import signal
import sys
import time
from collections.abc import Collection, Sequence
from typing import Any

import httpx
import ray
import yaml
from ray import serve
from ray.exceptions import RayError
from ray.serve._private.api import serve_start
from ray.serve.exceptions import DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import ApplicationStatus, ServeApplicationSchema, ServeDeploySchema

from serve import deploy_file
from serve.app import AppArgs
from serve.health import GRAPH, unready_deployments
from serve.ingress import Ingress
from serve.runner import JobRunner

LOCAL = "local"  # Ray's word for a cluster of this process's own
POLL_S = 0.25
ANSWER_S = 5.0  # for a replica to say how much it does
LINGER_S = 1.0  # a finished video has yet to reach its client


class NotStarted(Exception):
    """The graph will not run; the message is one line."""


def serve_until_stopped(text: str, started_at: float) -> int:
    """Run the applications of a checked deployment file until a signal; the exit status.

    Args:
        started_at: on the monotonic clock; the line that says "ready" counts from there.
    """
    config = ServeDeploySchema.model_validate(yaml.safe_load(text))
    address = os.environ.get("RAY_ADDRESS") or LOCAL
    try:
        _deploy(config, address)
        _wait_until_ready(config)
        _say(f"Ready at {_url(config)} after {time.monotonic() - started_at:.0f} s. Ctrl-C stops the server.")
        while True:
            time.sleep(3600)
    except NotStarted as error:
        _say(f"The server cannot start. {error}")
        return 1
    except KeyboardInterrupt:
        _drain(_ours(config))
        return 0
    finally:
        _end(address, {application.name for application in config.applications})


def _ours(config: ServeDeploySchema) -> list[ServeApplicationSchema]:
    return [application for application in config.applications if deploy_file.is_ours(application.import_path)]


def _deploy(config: ServeDeploySchema, address: str) -> None:
    """Do what ``serve run`` does first. SIGTERM interrupts this process from then on as Ctrl-C does."""
    _say("Starting Ray." if address == LOCAL else f"Joining the Ray cluster at {address}.")
    ray.init(address=address, namespace="serve")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # Ray has just set a handler of its own
    client = serve_start(
        http_options=config.http_options.model_dump(),
        proxy_location=config.proxy_location,
        grpc_options=config.grpc_options.model_dump(),
        controller_options=config.controller_options,
    )
    client.deploy_apps(config)


def _wait_until_ready(config: ServeDeploySchema) -> None:
    told: set[str] = set()
    while missing := {name: why for application in config.applications for name, why in _missing(application).items()}:
        lines = [f"Waiting for {', '.join(missing)}.", *(f"{name}: {why}" for name, why in missing.items() if why)]
        for line in lines:
            if line not in told:
                _say(line)
        told.update(lines)
        time.sleep(POLL_S)
    while not all(_is_healthy(f"{_url(config)}{application.route_prefix}") for application in _ours(config)):
        time.sleep(POLL_S)  # the proxy learns of the routes a moment later


def _missing(application: ServeApplicationSchema) -> dict[str, str]:
    """What of an application does not run yet, and why where that is known.

    Raises:
        NotStarted: some of it never will.
    """
    status = serve.status().applications.get(application.name)
    if status is None:
        return {GRAPH: ""}
    missing = unready_deployments(status)
    if status.status is ApplicationStatus.DEPLOY_FAILED:
        raise NotStarted("; ".join(f"{name}: {why}" for name, why in missing.items()) or status.message)
    return missing or ({} if status.status is ApplicationStatus.RUNNING else {application.name: ""})


def _is_healthy(url: str) -> bool:
    try:
        return httpx.get(f"{url.rstrip('/')}/health", timeout=ANSWER_S, verify=False).is_success
    except httpx.TransportError:
        return False


def _url(config: ServeDeploySchema) -> str:
    """Where this machine reaches the proxy."""
    http = config.http_options
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(http.host, http.host)
    return f"{'https' if http.ssl_certfile else 'http'}://{f'[{host}]' if ':' in host else host}:{http.port}"


def _drain(applications: Sequence[ServeApplicationSchema]) -> None:
    """Let what is being made finish and take nothing new, until all is done, it took too long or a signal came."""
    longest_s = max((AppArgs(**application.args).longest_request_s for application in applications), default=0)
    handles = [
        serve.get_deployment_handle(stage.__name__, application.name)
        for application in applications
        for stage in (JobRunner, Ingress)
    ]
    told, end = 0, time.monotonic() + longest_s
    try:
        while (busy := sum(map(_busy, handles))) and time.monotonic() < end:
            if busy != told:
                told = busy
                _say(
                    f"Stopping. {_videos(busy)} being made; waiting up to {end - time.monotonic():.0f} s for that. "
                    "Press Ctrl-C again to stop at once. Queued jobs stay stored."
                )
            time.sleep(POLL_S)
        time.sleep(LINGER_S if told else 0)
        _say("Stopped." if not busy else "Stopped, because it took too long.")
    except KeyboardInterrupt:
        _say("Stopped at once.")


def _busy(handle: DeploymentHandle[Any]) -> int:
    """How many videos the replicas of a deployment are making, which take no new ones from now on."""
    try:
        return sum(handle.broadcast("drain").results(timeout_s=ANSWER_S))
    except DeploymentUnavailableError:
        return 0
    except (TimeoutError, RayError):  # a replica that is too busy to answer, or has just died
        return 1


def _videos(count: int) -> str:
    return "1 video is" if count == 1 else f"{count} videos are"


def _end(address: str, applications: Collection[str]) -> None:
    """End what this process started: all of Ray, or these applications on a cluster that goes on."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    if address == LOCAL:
        ray.shutdown()
    elif set(serve.status().applications) <= set(applications):
        serve.shutdown()
    else:
        for name in applications:
            serve.delete(name)


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()
