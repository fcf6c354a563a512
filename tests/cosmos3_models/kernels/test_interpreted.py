"""The Triton kernels in Triton's interpreter, which needs no GPU, against the PyTorch that defines them."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


@pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed: pip install triton")
def test_the_kernels_compute_what_their_definitions_say() -> None:
    """In a process of its own: Triton asks once, at the first kernel, whether to interpret."""
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "tests/gpu/test_kernels.py"]
    environment = os.environ | {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
