"""What computes: figures mean little without it."""

import platform
import re
import subprocess
from pathlib import Path
from typing import NamedTuple

import torch

from serve.graph.worker import cores


class Machine(NamedTuple):
    """A CPU as PyTorch uses it.

    Attributes:
        cores: that this process may use.
        instructions: the widest that PyTorch computes with, such as AVX2 or AVX512.
    """

    cpu: str
    cores: int
    instructions: str
    torch: str

    @classmethod
    def here(cls) -> "Machine":
        return cls(cpu_name(), cores(), torch.backends.cpu.get_cpu_capability(), torch.__version__)

    def __str__(self) -> str:
        return f"{self.cpu}, {self.cores} cores, {self.instructions}, torch {self.torch}"


def cpu_name() -> str:
    """What the maker calls it, or else its architecture."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists() and (found := re.search(r"^model name\s*: (.+)$", cpuinfo.read_text(), re.MULTILINE)):
        return found[1]
    if platform.system() == "Darwin":
        return subprocess.check_output(["sysctl", "-n", "machdep.cpu.brand_string"], text=True).strip()
    return platform.processor() or platform.machine()
