"""The commands and snippets of README and docs/ run as they stand, against the server that ``make serve`` starts.

What a test cannot leave as it is: the port, which may be taken; the demo's number of steps, to save time; the cluster
that Ray calls "auto", because this machine may have another one; and the home folder. The picture and the clip that the
reader has are small ones.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import av
import psutil
import pytest
from paths import ROOT
from running_server import Server, free_port, wait_until_healthy
from sample_media import clip, picture

from cosmos3_models.checkpoint.folder import DEMO_FOLDER

BLOCK = re.compile(r"^```(bash|python)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PAGES = ("README.md", "docs/api.md", "docs/batches.md", "docs/operate.md")
WRITTEN = re.compile(r'-o ([\w.-]+)|write_to_file\("([\w.-]+)|open\("([\w.-]+)", "wb"\)')
STEPS = 1
NOT_RUN = {
    "make test\n": "it is what runs this test",
    "make serve PORT=8001": "its checkpoint and its file are the reader's",
    "prometheus --config.file": "test_dashboard runs it, where there is a Prometheus",
    "serve status": "another server may have the port of Ray's dashboard",
    "class Receiver(": "test_deliveries runs it, for it waits for events without end",
    "-F prompt_upsampling=true": "it needs a chat model; test_upsampled_requests sends it to a server that has one",
    "prom_metrics_service_discovery": "the file is of the machine's newest cluster; test_dashboard reads the series",
}


def blocks() -> dict[tuple[str, str], str]:
    """Language and code of every block, with the first page that has it."""
    found: dict[tuple[str, str], str] = {}
    for page in PAGES:
        for language, code in BLOCK.findall((ROOT / page).read_text()):
            found.setdefault((language, code), page)
    return found


START = ("bash", "make serve\n")
RUN = {
    block: page
    for block, page in blocks().items()
    if block != START and not any(start in block[1] for start in NOT_RUN)
}


@dataclass(frozen=True)
class Documented:
    """The server that ``make serve`` starts, and a folder in which its user works."""

    folder: Path
    environment: dict[str, str]
    changes: dict[str, str]

    def run(self, language: str, code: str) -> str:
        """What a block prints."""
        for written, here in self.changes.items():
            code = code.replace(written, here)
        command = [sys.executable, "-c", code] if language == "python" else ["bash", "-ec", code]
        done = subprocess.run(
            command, cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=240
        )
        assert done.returncode == 0, done.stderr
        return done.stdout


def quick_demo(folder: Path) -> Path:
    """The demo, but that it takes fewer steps by default."""
    copy = Path(shutil.copytree(DEMO_FOLDER, folder))
    defaults = json.loads((copy / "generation_config.json").read_text())
    (copy / "generation_config.json").write_text(json.dumps(defaults | {"num_inference_steps": STEPS}))
    return copy


def gcs_address(process: psutil.Process) -> str:
    """The address of the cluster that a server has started."""
    commands = [child.cmdline() for child in process.children(recursive=True)]
    (address,) = {word for command in commands for word in command if word.startswith("--gcs-address=")}
    return address.partition("=")[2]


@pytest.fixture(scope="module")
def documented(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Documented]:
    assert START in blocks()
    home, folder, port = tmp_path_factory.mktemp("home"), tmp_path_factory.mktemp("user"), free_port()
    (folder / ".venv").symlink_to(ROOT / ".venv")
    (folder / "ball.png").write_bytes(picture())
    (folder / "clip.mp4").write_bytes(clip())
    url, demo = f"http://127.0.0.1:{port}", quick_demo(home / "cosmos3-demo")
    options = [f"PORT={port}", f"CHECKPOINT={demo}"]
    rehearsal = ["make", "--no-print-directory", "--dry-run", "serve", *options]  # what it installs is there
    *_, start = subprocess.run(rehearsal, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    environment = os.environ | {"HOME": str(home), "PYTHONPATH": str(ROOT)}
    with (home / "log").open("w") as log:
        process = subprocess.Popen(start.split(), cwd=ROOT, env=environment, stdout=log, stderr=log)
    try:
        wait_until_healthy(Server(url), process, home / "log")
        while "Ready at " not in (home / "log").read_text():  # a signal before it would be another stop
            assert process.poll() is None
            time.sleep(0.1)
        variables = {"RAY_AUTH_MODE": "token", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
        address = {"RAY_ADDRESS": gcs_address(psutil.Process(process.pid))}
        changes = {"http://127.0.0.1:8000": url, "submit ": f"submit --url {url} ", '"demo"': f'"{demo}"'}
        changes["cosmos3 batch "] = f"cosmos3 batch --url {url} "
        changes["cosmos3 generate "] = f"cosmos3 generate --num-inference-steps {STEPS} "
        yield Documented(folder, environment | variables | address, changes)
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(timeout=120)
    assert (home / "log").read_text().rstrip().endswith("Stopped.")


def test_what_is_not_run_is_there() -> None:
    code = "".join(code for _, code in blocks())
    assert all(start in code for start in NOT_RUN)


@pytest.mark.skipif(not (ROOT / ".venv/bin").exists(), reason="the documents' commands need .venv")
@pytest.mark.parametrize(
    ("language", "code"), RUN, ids=[f"{page} {number}" for number, page in enumerate(RUN.values())]
)
def test_a_block_runs_as_it_stands(documented: Documented, language: str, code: str) -> None:
    written = [documented.folder / name for names in WRITTEN.findall(code) for name in names if name]
    for made in written:
        made.unlink(missing_ok=True)
    documented.run(language, code)
    for made in written:
        with av.open(made) as file:
            kinds = ["video", "audio"] if "sound" in code else ["video"]
            assert [stream.type for stream in file.streams] == kinds
