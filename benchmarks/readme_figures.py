"""The demo's figures, measured here and shown beside ours: it starts a server and makes the video of README's curl.

python -m benchmarks.readme_figures
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import httpx

from benchmarks.machine import Machine
from benchmarks.measure import print_table
from benchmarks.server import server

README = Path("README.md")
PAGE = Path("docs/figures.md")
OURS = Path(__file__).with_suffix(".json")
BODY = re.compile(r"/v1/videos/sync .*? -d '(\{.*?\})'", re.DOTALL)
TABLE = re.compile(r"\| figure \|.*?\n\n", re.DOTALL)
QUEUE = 4
IDLE_LOAD = 0.5
POLL_S = 0.1

FIGURES = {
    "start": "`serve run deploy.yaml` to a 200 of `/health`",
    "curl": "README's curl",
    "denoise": "of that: denoise",
    "decode": "of that: decode and encode",
    "rest": "of that: all else",
    "library": "the same video by `cosmos3 generate`, with imports and loading",
    "queue": f"{QUEUE} of these videos, posted at once, until all have ended",
}
Seconds = dict[str, float]


class Place(NamedTuple):
    """Where and how figures were measured.

    Attributes:
        times: videos of which the median run counts.
        load: of the system over the minute before.
    """

    machine: Machine
    times: int
    load: float

    def __str__(self) -> str:
        return f"{self.machine}; median of {self.times}; load before {self.load:.1f}"


def main() -> None:
    """Print our figures and those of this machine."""
    args = _parser().parse_args()
    if args.save and os.getloadavg()[0] > IDLE_LOAD:
        sys.exit(f"load: got {os.getloadavg()[0]:.1f}, expected at most {IDLE_LOAD} before our figures change")
    here, body = Place(Machine.here(), args.times, round(os.getloadavg()[0], 1)), readme_body()
    print(f"Here: {here}. On an idle machine this takes two minutes.")
    with tempfile.TemporaryDirectory() as folder:
        with server(Path(folder), args.port) as started, httpx.Client(base_url=started.url, timeout=None) as client:
            seconds = {"start": started.ready_s} | of_requests(client, body, args.times)
        seconds["library"] = of_library(body, Path(folder) / "video.mp4")
    place, ours = saved()
    print_table([{"ours": shown(ours[name]), "here": shown(seconds[name]), "": FIGURES[name]} for name in FIGURES])
    print(f"Ours: {place}.")
    if args.save:
        save(here, seconds)


def of_requests(client: httpx.Client, body: dict[str, Any], times: int) -> Seconds:
    """Seconds of README's curl and its parts, in the median run, and of a short queue."""
    made = sorted((_made(client, body) for _ in range(times)), key=lambda run: run["curl"])
    return made[(times - 1) // 2] | {"queue": _timed(lambda: _queue(client, body))}


def of_library(body: dict[str, Any], out: Path) -> float:
    """Seconds of the same video without a server."""
    command = [sys.executable, "-m", "serve", "generate", body["prompt"], "--sound", "-o", str(out)]
    command.append(f"--seed={body['seed']}")
    return _timed(lambda: subprocess.run(command, check=True, capture_output=True))


def readme_body() -> dict[str, Any]:
    """What README's curl sends."""
    found = BODY.search(README.read_text())
    assert found is not None
    body: dict[str, Any] = json.loads(found[1])
    return body


def saved() -> tuple[Place, Seconds]:
    """Where our figures are from, and the figures."""
    data = json.loads(OURS.read_text())
    return Place(Machine(**data["machine"]), data["times"], data["load"]), data["seconds"]


def save(place: Place, seconds: Seconds) -> None:
    """Make these our figures."""
    rounded = {name: round(seconds[name], 2) for name in FIGURES}
    data = place._asdict() | {"machine": place.machine._asdict(), "seconds": rounded}
    OURS.write_text(json.dumps(data, indent=1) + "\n")
    PAGE.write_text(TABLE.sub(lambda _: table() + "\n\n", PAGE.read_text(), count=1))


def table() -> str:
    """The page's table of them."""
    place, seconds = saved()
    rows = [f"| {label} | {shown(seconds[name])} |" for name, label in FIGURES.items()]
    return "\n".join([f"| figure | {place} |", "|---|---|", *rows])


def shown(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s" if seconds >= 1 else f"{seconds:.2f} s"


def _made(client: httpx.Client, body: dict[str, Any]) -> Seconds:
    """One video: seconds until the client has it, and of its stages."""
    start = time.perf_counter()
    response = client.post("/v1/videos/sync", json=body).raise_for_status()
    wall_s = time.perf_counter() - start
    stages: Seconds = json.loads(response.headers["X-Stage-Durations"])
    parts = {"denoise": stages["denoiser"], "decode": stages["decoders"]}
    return {"curl": wall_s, **parts, "rest": wall_s - sum(parts.values())}


def _queue(client: httpx.Client, body: dict[str, Any]) -> None:
    """Post jobs at once and wait for all of them."""
    ids = [client.post("/v1/videos", json=body).raise_for_status().json()["id"] for _ in range(QUEUE)]
    while running := [video for video in ids if _status(client, video) not in ("completed", "failed")]:
        ids = running
        time.sleep(POLL_S)


def _status(client: httpx.Client, video: str) -> str:
    status: str = client.get(f"/v1/videos/{video}").raise_for_status().json()["status"]
    return status


def _timed(action: Callable[[], object]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=5, help="videos whose median counts (%(default)s)")
    parser.add_argument("--port", type=int, default=8123, help="where the server listens (%(default)s)")
    parser.add_argument("--save", action="store_true", help="make these our figures, on an idle machine")
    return parser


if __name__ == "__main__":
    main()
