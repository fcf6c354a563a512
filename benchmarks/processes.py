"""What the processes of a server cost, by what they are."""

import contextlib
import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path, PurePath

import psutil

REPLICA = "ray::ServeReplica:cosmos3:"
OURS = ("Ingress", "JobRunner", "Tokenizer", "VideoEncoder", "Denoiser", "VideoDecoder", "SoundDecoder")
"""The replicas of this project's deployments. All other processes are Ray's."""
CLIENT = "client"
Figures = defaultdict[str, float]
"""A sum for each name of a process; zero for a name without a process."""
WAITS = re.compile(r"^voluntary_ctxt_switches:\s*(\d+)", re.M)


def cpu_s(pid: int) -> Figures:
    """CPU seconds so far of the server that ``pid`` started, by process, and of this process as its client."""
    spent = _sum(pid, lambda process: sum(process.cpu_times()[:2]))
    spent[CLIENT] += sum(psutil.Process().cpu_times()[:2])
    return spent


def switches(pid: int) -> Figures:
    """How often the threads of each process of the server have waited, and so have been woken. Linux alone tells."""
    return _sum(pid, _waits)


def memory_mb(pid: int) -> Figures:
    """Memory by process in MB, in which what several share is divided among them (PSS)."""
    return _sum(pid, lambda process: process.memory_full_info().pss / 1e6)


def of_deployment(pid: int, deployment: str) -> list[psutil.Process]:
    """The replicas of a deployment."""
    return [process for process in _family(pid) if _name(process) == deployment]


def count(pid: int) -> int:
    return len(list(_family(pid)))


def growth(before: Figures, after: Figures) -> Figures:
    """The difference of two readings, by process, largest first."""
    differences = {name: after[name] - before[name] for name in {**before, **after}}
    return defaultdict(float, sorted(differences.items(), key=lambda item: -item[1]))


def ours(figures: Figures) -> float:
    """The part of this project's replicas."""
    return sum(figures[name] for name in OURS)


def rays(figures: Figures) -> float:
    """The part of Ray's own processes."""
    return sum(figure for name, figure in figures.items() if name not in (*OURS, CLIENT))


def _sum(pid: int, figure: Callable[[psutil.Process], float]) -> Figures:
    figures: Figures = defaultdict(float)
    for process in _family(pid):
        with contextlib.suppress(psutil.Error, OSError):  # it ended meanwhile
            figures[_name(process)] += figure(process)
    return figures


def _waits(process: psutil.Process) -> int:
    threads = Path(f"/proc/{process.pid}/task").glob("*/status")
    return sum(int(WAITS.findall(thread.read_text())[0]) for thread in threads)


def _family(pid: int) -> Iterator[psutil.Process]:
    root = psutil.Process(pid)
    yield root
    yield from root.children(recursive=True)


def _name(process: psutil.Process) -> str:
    """The deployment of a replica, the class of one of Ray's actors, or the program."""
    command = process.cmdline()
    first = command[0] if command else process.name()
    if first.startswith("ray::"):  # followed by the method that runs at the moment
        return first.removeprefix(REPLICA).removeprefix("ray::").split(".")[0]
    script = next((word for word in command[1:] if word.endswith((".py", "serve.scripts"))), first)
    return PurePath(script).name
