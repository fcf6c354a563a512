"""Memory of the ingress and of Serve's proxy while large clips arrive at once, and the times of small requests.

python -m benchmarks.uploads
"""

import argparse
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from statistics import median
from threading import Event, Thread
from typing import Any

import av
import httpx
import numpy as np
import psutil

from benchmarks import processes
from benchmarks.measure import report
from benchmarks.peak import Peak
from benchmarks.server import TINIEST, Server, server, server_parser

WATCHED = {"ingress": "Ingress", "proxy": "ProxyActor"}
HEIGHT, WIDTH, FPS = 720, 1280, 24
PROBE_S = 0.05  # between two small requests
ALONE_S = 5.0  # of small requests before the uploads
CLIENT_TIMEOUT_S = 600.0


def main() -> None:
    """Print a line of JSON and a table."""
    parser = server_parser(__doc__, 8131)
    parser.add_argument("--clips", type=int, default=20, help="uploads at once (%(default)s)")
    parser.add_argument("--megabytes", type=float, default=50, help="size of the clip (%(default)s)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        clip = Path(folder, "clip.mp4")
        write_clip(clip, args.megabytes * 1e6)
        with server(Path(folder), args.port, checkpoint=args.checkpoint) as started:
            report([measure(started, clip, args)], "cpu")


def write_clip(path: Path, size: float) -> None:
    """Write an mp4 of ``size`` bytes or a few frames more: noise, compressed without loss."""
    noise = np.random.default_rng(0)
    with av.open(path, "w") as container:
        stream: Any = container.add_stream("libx264", rate=FPS, options={"qp": "0", "preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        while size > 0:
            planes = noise.integers(16, 235, (HEIGHT * 3 // 2, WIDTH), dtype=np.uint8)
            for packet in stream.encode(av.VideoFrame.from_ndarray(planes, format="yuv420p")):
                size -= packet.size
                container.mux(packet)
        container.mux(stream.encode())


def measure(started: Server, clip: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Upload all clips at once; memory in MB (RSS), its own part, and the times of small requests."""
    with probes(started.url) as alone:
        time.sleep(ALONE_S)
    read = {f"{name}_mb": partial(_resident_mb, _process(started.pid, process)) for name, process in WATCHED.items()}
    read |= {f"own {name}": partial(resident, shared=False) for name, resident in read.items()}
    before, cpu = {name: resident() for name, resident in read.items()}, processes.cpu_s(started.pid)
    with ExitStack() as watching:
        peaks = {name: watching.enter_context(Peak(resident)) for name, resident in read.items()}
        with probes(started.url) as meanwhile, ThreadPoolExecutor(args.clips) as clients:
            uploads = list(clients.map(partial(_upload, started.url, clip), range(args.clips)))
        most = {name: peak.most() or 0 for name, peak in peaks.items()}
    spent = processes.growth(cpu, processes.cpu_s(started.pid))
    return {
        "clips": args.clips,
        "megabytes": round(clip.stat().st_size / 1e6, 1),
        "codes": dict(Counter(code for code, _ in uploads)),
        **{name: f"{before[name]:.0f} -> {most[name]:.0f}" for name in read},
        **{f"{name}_cpu_s": round(spent[process], 1) for name, process in WATCHED.items()},
        "all_answered_s": round(max(seconds for _, seconds in uploads), 1),
        "small_alone_ms": _times(alone),
        "small_meanwhile_ms": _times(meanwhile),
    }


@contextmanager
def probes(url: str) -> Iterator[list[float]]:
    """Small requests, one after the other, until the context ends; the milliseconds of each."""
    times: list[float] = []
    done = Event()

    def run() -> None:
        with httpx.Client(base_url=url, timeout=CLIENT_TIMEOUT_S) as client:
            while not done.wait(PROBE_S):
                start = time.perf_counter()
                client.get("/v1/models").raise_for_status()
                times.append(1000 * (time.perf_counter() - start))

    thread = Thread(target=run)
    thread.start()
    try:
        yield times
    finally:
        done.set()
        thread.join()


def _upload(url: str, clip: Path, number: int) -> tuple[int, float]:
    """The status of one upload, and its seconds."""
    fields = {name: str(value) for name, value in TINIEST.items()} | {"seed": str(number)}
    start = time.perf_counter()
    with clip.open("rb") as file:
        answer = httpx.post(f"{url}/v1/videos", data=fields, files={"input_reference": file}, timeout=CLIENT_TIMEOUT_S)
    return answer.status_code, time.perf_counter() - start


def _process(server_pid: int, name: str) -> psutil.Process:
    """The one process of this name, before it starts others, which have its name and memory for a moment."""
    (found,) = processes.of_deployment(server_pid, name)
    return found


def _resident_mb(process: psutil.Process, shared: bool = True) -> float:
    """Memory of a process, with or without pages that it may share, such as those of Ray's object store."""
    memory = process.memory_info()
    return (memory.rss if shared else memory.rss - memory.shared) / 1e6


def _times(milliseconds: list[float]) -> str:
    return f"{median(milliseconds):.0f}, at most {max(milliseconds):.0f}"


if __name__ == "__main__":
    main()
