"""The whole request through Ray Serve and HTTP, and what the graph costs against one process without Ray.

A case is HEIGHTxWIDTHxFRAMES:STEPS:TIMES, for the queue HEIGHTxWIDTHxFRAMES:STEPS:JOBS. Every request has the same
prompt and seed, and guidance with the default negative prompt. Each part is left out if nothing asks for it.

python -m benchmarks.graph --checkpoint demo --case 64x64x9:4:3 --queue 64x64x9:4:3 --sound --out graph.json
"""

import argparse
import json
import re
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import httpx

from benchmarks import one_process
from benchmarks.measure import environment, print_table
from benchmarks.one_process import WARM_UP_STEPS, Case, Made, summary
from benchmarks.peak import Peak, gpu_gib, replicas, resident_gib
from benchmarks.queue_times import queue_times, read_jobs
from benchmarks.server import Server, server, server_parser
from cosmos3_models.approximations import Approximation
from cosmos3_models.checkpoint.loading import resolve_device
from cosmos3_models.media.output_file import check_output_file

Row = dict[str, Any]

PATIENCE_S = 600.0
POLL_S = 0.2
WITHOUT_GPU_WORK = ("Ingress", "JobRunner")  # their processes should not grow with latents or pixels
MILESTONES = {
    "ray_s": "Started a local Ray instance",
    "built_s": "Imported and built app",
    "denoiser_ready_s": "Transformer of",
}
PHASES = {  # of the denoiser's start, whose lines end in their seconds
    "denoiser_import_s": r"PyTorch imported in ([\d.]+) s",
    "denoiser_load_s": r"Weights of .* loaded in ([\d.]+) s",
    "denoiser_warm_up_s": r"Transformer of .* in ([\d.]+) s",
}
LOGGED = "|".join([*MILESTONES.values(), "Adding 1 replica", "ERROR", "GET /health 200"])


@dataclass
class Record:
    """The rows up to now; the file holds them whatever comes next."""

    out: Path
    rows: list[Row] = field(default_factory=list)

    def add(self, part: str, row: Row) -> None:
        """Write the row down without what was not measured."""
        self.rows.append({"part": part} | {name: value for name, value in row.items() if value is not None})
        _say(json.dumps(self.rows[-1]))
        self.write({})

    def write(self, about: dict[str, str]) -> None:
        self.out.write_text(json.dumps(about | {"results": self.rows}, indent=1) + "\n")

    @contextmanager
    def trying(self, part: str) -> Iterator[None]:
        """An error becomes a row, and the other parts go on."""
        try:
            yield
        except Exception as error:
            traceback.print_exc()
            self.add(part, {"error": f"{type(error).__name__}: {error}"[:500]})

    def part(self, name: str) -> list[Row]:
        return [row for row in self.rows if row["part"] == name]


def main() -> int:
    """Print one line of JSON and a table of each part; the exit status is 1 if one failed."""
    args = _parser().parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))  # so that what was started is ended
    check_output_file(args.out)
    record = Record(args.out)
    with Peak(gpu_gib) as gpu:
        if args.one_process:
            with record.trying("one process"):
                measure_one_process(args, record, gpu)
        measure_servers(args, record, gpu)
    about = environment(str(resolve_device(args.device)[0]))
    record.write(about)
    print(json.dumps(about | {"results": record.rows}))
    for part in dict.fromkeys(row["part"] for row in record.rows):
        print_table(record.part(part))
    return 1 if any("error" in row for row in record.rows) else 0


def measure_one_process(args: argparse.Namespace, record: Record, gpu: Peak) -> None:
    """Each case by the stage classes alone."""
    _say("One process without Ray.")
    gpu.begin()
    with tempfile.TemporaryDirectory() as folder:
        for row in one_process.rows(
            args.checkpoint, args.device, args.approximation, args.sound, args.case, Path(folder)
        ):
            record.add("one process", row | {"gpu_gib": gpu.most()})
            gpu.begin()


def measure_servers(args: argparse.Namespace, record: Record, gpu: Peak) -> None:
    """Start the server as often as asked for; the last one serves the requests.

    Triton's cache is a folder of these servers' own, so that the first start compiles and the others do not.
    """
    with tempfile.TemporaryDirectory() as compiled:
        for number in range(1, args.starts + 1):
            with record.trying("server"), tempfile.TemporaryDirectory() as folder:
                _say(f"Start {number} of the server.")
                gpu.begin()
                with started_server(args, number, Path(folder), compiled) as started:
                    row = {"start": number, "ready_s": started.ready_s, **milestones(started)}
                    record.add("server", row | {"gpu_gib": gpu.most()})
                    if number == args.starts:
                        measure_requests(args, record, gpu, started, Path(folder))


def started_server(
    args: argparse.Namespace, number: int, folder: Path, compiled: str
) -> AbstractContextManager[Server]:
    return server(
        folder,
        args.port,
        log=args.out.with_suffix(f".server{number}.log"),
        environment={"TRITON_CACHE_DIR": compiled},
        patience_s=PATIENCE_S,
        checkpoint=args.checkpoint,
        device=args.device,
        approximation=args.approximation.model_dump(),
    )


def measure_requests(args: argparse.Namespace, record: Record, gpu: Peak, started: Server, folder: Path) -> None:
    """Ask the server while the memory of the processes that only hand things on is watched."""
    with httpx.Client(base_url=started.url, timeout=None) as client, ExitStack() as opened:
        resident = {
            name.lower(): opened.enter_context(Peak(partial(resident_gib, replicas(started.pid, name))))
            for name in WITHOUT_GPU_WORK
        }
        Requests(args, record, gpu, resident, client, folder).measure()


def milestones(started: Server) -> dict[str, float]:
    """Seconds from the launch to lines of the log, and what the denoiser says that each phase of its start took."""
    for seconds, text in started.logged(LOGGED):
        _say(f"  {seconds:6.2f} s  {text[:200]}")
    found = {name: next((at for at, _ in started.logged(line)), None) for name, line in MILESTONES.items()}
    log = started.log.read_text(errors="replace")
    told = {name: float(line.group(1)) for name, phase in PHASES.items() if (line := re.search(phase, log))}
    return {name: at for name, at in found.items() if at is not None} | told


@dataclass
class Requests:
    """What is asked of a running server.

    Attributes:
        gpu: memory of the GPUs in GiB.
        resident: that of other processes, by name.
        folder: the server's.
    """

    args: argparse.Namespace
    record: Record
    gpu: Peak
    resident: dict[str, Peak]
    client: httpx.Client
    folder: Path

    def measure(self) -> None:
        """Each part that is asked for."""
        for case in self.args.case if self.args.http else ():
            with self.record.trying("http"):
                self._warm_up(case)
                self._add("http", partial(self._http, case, self.args.sound))
        if self.args.queue:
            with self.record.trying("queue"):
                self._warm_up(self.args.queue)
                self._add("queue", partial(self._queue, self.args.queue))
        if self.args.memory_case:
            with self.record.trying("memory"):
                self._add("memory", partial(self._http, self.args.memory_case, True))

    def _add(self, part: str, measured: Callable[[], Row]) -> None:
        """A row with the peaks of all memory that is watched, and by how much it grew."""
        for peak in (self.gpu, *self.resident.values()):
            peak.begin()
        row = measured() | {"gpu_gib": self.gpu.most()}
        for name, peak in self.resident.items():
            row |= {f"{name}_gib": peak.most(), f"{name}_grew_mib": (grown := peak.grown()) and 1024 * grown}
        self.record.add(part, row)

    def _warm_up(self, case: Case) -> None:
        self._make(case.fields(self.args.sound, self.args.approximation, WARM_UP_STEPS))

    def _http(self, case: Case, sound: bool) -> Row:
        """A case by the route that answers with the mp4."""
        made = [self._make(case.fields(sound, self.args.approximation)) for _ in range(case.times)]
        row = {"case": str(case), **summary(made)}
        return row | cost(row, self.record.part("one process"))

    def _make(self, fields: Row) -> Made:
        start = time.perf_counter()
        response = self.client.post("/v1/videos/sync", json=fields)
        if response.is_error:
            raise RuntimeError(f"the server answered {response.status_code}: {response.text[:1000]}")
        (self.folder / "one.mp4").write_bytes(response.content)
        seconds = time.perf_counter() - start
        return seconds, json.loads(response.headers["X-Stage-Durations"]), len(response.content)

    def _queue(self, case: Case) -> Row:
        """Jobs that are posted at once."""
        start = time.perf_counter()
        ids = [self._post(case.fields(self.args.sound, self.args.approximation)) for _ in range(case.times)]
        posted_s = time.perf_counter() - start
        while any(self._waits(video) for video in ids):
            time.sleep(POLL_S)
        times = queue_times(read_jobs(self.folder / "jobs.sqlite", ids))
        return {"case": str(case), "jobs": len(ids), "posted_s": posted_s, **times}

    def _post(self, fields: Row) -> str:
        video: str = self.client.post("/v1/videos", json=fields).raise_for_status().json()["id"]
        return video

    def _waits(self, video: str) -> bool:
        """Whether the job has not ended. A job that failed ends the benchmark."""
        job = self.client.get(f"/v1/videos/{video}").raise_for_status().json()
        if job["status"] == "failed":
            raise RuntimeError(f"job {video} failed: {job['error']}")
        return bool(job["status"] != "completed")


def cost(row: Row, alone: list[Row]) -> Row:
    """What the request took longer than the same case in one process, if that was measured."""
    same = next((other["wall_s"] for other in alone if other.get("case") == row["case"]), None)
    if same is None:
        return {}
    more_s = row["wall_s"] - same
    return {"more_ms": 1000 * more_s, "more_percent": 100 * more_s / same}


def _say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = server_parser(__doc__, 8124)
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--case", type=Case.parse, action="append", default=[], help="may be given several times")
    parser.add_argument("--queue", type=Case.parse, help="jobs that are posted at once")
    parser.add_argument("--memory-case", type=Case.parse, help="a request with sound for the peak of memory")
    parser.add_argument("--sound", action="store_true", help="cases and jobs with sound")
    parser.add_argument("--approximation", type=_approximation, default=Approximation(), help="JSON of its fields")
    parser.add_argument("--one-process", action=argparse.BooleanOptionalAction, default=True, help="without Ray first")
    parser.add_argument("--starts", type=int, default=1, help="of the server; 0 is none, and no requests (%(default)s)")
    parser.add_argument("--http", action=argparse.BooleanOptionalAction, default=True, help="the cases over HTTP")
    parser.add_argument("--out", type=Path, default=Path("graph.json"), help="written after each row (%(default)s)")
    return parser


def _approximation(text: str) -> Approximation:
    return Approximation(**json.loads(text))


if __name__ == "__main__":
    sys.exit(main())
