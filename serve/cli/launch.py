"""Start Ray and Serve, say when every stage is ready, and after a signal finish the running videos."""

import logging
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Collection, Sequence
from contextlib import suppress
from importlib.util import find_spec
from typing import Any

import httpx
import ray
import yaml
from ray import serve
from ray.exceptions import RayError
from ray.serve._private.api import serve_start
from ray.serve.config import ControllerOptions
from ray.serve.exceptions import DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import (
    ApplicationStatus,
    HTTPOptionsSchema,
    ServeApplicationSchema,
    ServeDeploySchema,
)

from serve.app import AppArgs
from serve.cli import deploy_file
from serve.http.health import GRAPH, reason, unready_deployments
from serve.ingress.ingress import Ingress
from serve.jobs.runner import JobRunner
from serve.tracing import ENDPOINTS, TRACED

STOPPING = (
    "Stopping. {videos} running; waiting up to {s:.0f} s for that. Press Ctrl-C again to stop at once. "
    "Queued jobs stay stored."
)
LOCAL = "local"  # Ray's address of a new cluster of this process
POLL_S = 0.25
ANSWER_S = 5.0  # for a replica to report its load
LINGER_S = 1.0  # for the last finished video to reach its client


class NotStarted(Exception):
    """The server cannot start; the message is one line."""


def serve_until_stopped(text: str, started_at: float) -> int:
    """Run the applications of a checked deployment file until a signal; the exit status.

    Args:
        started_at: on the monotonic clock; the line that says "ready" counts from there.
    """
    config = ServeDeploySchema.model_validate(yaml.safe_load(text))
    address = os.environ.get("RAY_ADDRESS") or LOCAL
    status, last_line = 0, "Stopped."
    try:
        _deploy(config, address)
        _wait_until_ready(config)
        _say(f"Ready at {_url(config)} after {time.monotonic() - started_at:.0f} s. Press Ctrl-C to stop the server.")
        with suppress(KeyboardInterrupt):
            _sleep_forever()
        _drain(_ours(config))
    except NotStarted as error:
        status, last_line = 1, f"The server cannot start. {error}"
    except KeyboardInterrupt:  # the second one, or one before the server was ready
        last_line = "Stopped at once."
    finally:
        _end(address, {application.name for application in config.applications})
    _say(last_line)
    return status


def _sleep_forever() -> None:
    while True:
        time.sleep(3600)


def _ours(config: ServeDeploySchema) -> list[ServeApplicationSchema]:
    return [application for application in config.applications if deploy_file.is_ours(application.import_path)]


def _deploy(config: ServeDeploySchema, address: str) -> None:
    """Start Ray and deploy, as ``serve run`` does.

    Raises:
        NotStarted: Ray or Serve failed to start.
    """
    if address == LOCAL:
        _check_port(config.http_options)
    _say("Starting Ray." if address == LOCAL else f"Joining the Ray cluster at {address}.")
    try:
        ray.init(address=address, namespace="serve")
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # Ray has just installed its own handler
        client = serve_start(
            http_options=config.http_options.model_dump(),
            proxy_location=config.proxy_location,
            grpc_options=config.grpc_options.model_dump(),
            controller_options=_controller_options(config),
        )
        logging.getLogger("ray.serve").setLevel(logging.WARNING)  # only in this process, whose handles log each start
        client.deploy_apps(config)
    except Exception as error:
        raise NotStarted(reason(traceback.format_exc())) from error


def _controller_options(config: ServeDeploySchema) -> ControllerOptions:
    """The options of the file, with Serve's own tracing if the file or the environment names where spans go to."""
    options = config.controller_options or ControllerOptions()
    runtime_env = options.runtime_env or {}
    variables = runtime_env.get("env_vars", {})
    if config.tracing_config is not None or not any((os.environ | variables).get(name) for name in ENDPOINTS):
        return options
    if find_spec("opentelemetry.exporter.otlp") is None:
        _say("No traces are sent: they need pip install 'cosmos3-serve[tracing]'.")
        return options
    # By variables, because Serve does not hand its tracing_config to the proxies.
    return ControllerOptions(runtime_env=runtime_env | {"env_vars": TRACED | variables})


def _check_port(http: HTTPOptionsSchema) -> None:
    """Refuse a port in use: Serve's proxy would share it, and each server would get some of the requests."""
    family = socket.AF_INET6 if ":" in http.host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((http.host, http.port))
        except OSError as error:
            problem = f"http_options: got port {http.port} of {http.host}, expected one that is free ({error.strerror})"
            raise NotStarted(f"{problem}; choose another one with --port") from None


def _wait_until_ready(config: ServeDeploySchema) -> None:
    printed: list[str] = []
    while missing := [name for application in config.applications for name in _missing(application)]:
        if missing != printed:
            _say(f"Waiting for {', '.join(missing)}.")
            printed = missing
        time.sleep(POLL_S)
    while not all(_is_healthy(f"{_url(config)}{application.route_prefix}") for application in _ours(config)):
        time.sleep(POLL_S)  # the proxy learns the routes a moment later


def _missing(application: ServeApplicationSchema) -> Collection[str]:
    """The parts of an application that do not run yet.

    Raises:
        NotStarted: a part failed to start.
    """
    status = serve.status().applications.get(application.name)
    if status is None:
        return [GRAPH]
    missing = unready_deployments(status)
    if status.status is ApplicationStatus.DEPLOY_FAILED:
        raise NotStarted("; ".join(f"{name}: {why}" for name, why in missing.items()) or reason(status.message))
    return missing or ([] if status.status is ApplicationStatus.RUNNING else [application.name])


def _is_healthy(url: str) -> bool:
    try:
        return httpx.get(f"{url.rstrip('/')}/health", timeout=ANSWER_S, verify=False).is_success
    except httpx.TransportError:
        return False


def _url(config: ServeDeploySchema) -> str:
    """The proxy's URL on this machine."""
    http = config.http_options
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(http.host, http.host)
    return f"{'https' if http.ssl_certfile else 'http'}://{f'[{host}]' if ':' in host else host}:{http.port}"


def _drain(applications: Sequence[ServeApplicationSchema]) -> None:
    """Refuse new videos and wait for the running ones, for at most ``longest_request_s``."""
    longest_s = max((AppArgs(**application.args).longest_request_s for application in applications), default=0)
    handles = [
        serve.get_deployment_handle(stage.__name__, application.name)
        for application in applications
        for stage in (JobRunner, Ingress)
    ]
    printed, end = 0, time.monotonic() + longest_s
    while (busy := sum(map(_busy, handles))) and time.monotonic() < end:
        if busy != printed:
            _say(f"{_videos(busy)} still running." if printed else STOPPING.format(videos=_videos(busy), s=longest_s))
            printed = busy
        time.sleep(POLL_S)
    time.sleep(LINGER_S if printed else 0)


def _busy(handle: DeploymentHandle[Any]) -> int:
    """Tell the replicas of a deployment to accept no new videos; returns the number of running ones."""
    try:
        return sum(handle.broadcast("drain").results(timeout_s=ANSWER_S))
    except DeploymentUnavailableError:
        return 0
    except (TimeoutError, RayError):  # the replica is too busy to answer, or has just died
        return 1


def _videos(count: int) -> str:
    return "1 video is" if count == 1 else f"{count} videos are"


def _end(address: str, applications: Collection[str]) -> None:
    """Stop what this process started: all of Ray, or these applications of a shared cluster."""
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
