"""Fixtures and markers for all tests. Nothing here imports Ray or diffusers, so the GPU tests run without them."""

import os
import signal
from importlib.util import find_spec
from pathlib import Path

import pytest
from filelock import FileLock

pytest_plugins = [name for name, needs in (("cluster", "ray"), ("browser", "playwright")) if find_spec(needs)]

# A shell gives a command in the background an ignored Ctrl-C, which all that the tests start would inherit.
signal.signal(signal.SIGINT, signal.default_int_handler)

PARALLEL = "PYTEST_XDIST_WORKER" in os.environ
if PARALLEL:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # else each process computes in as many threads as there are cores

SERVER_FIXTURES = {"cluster", "browser", "launch", "whole_server", "two_nodes", "documented"}


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random checkpoint in the public layout, sharded, as diffusers saved it. Do not write into it."""
    import tiny  # imports diffusers, which machines for the GPU tests may lack

    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if PARALLEL else base) / "tiny-cosmos3"
    with FileLock(folder.with_suffix(".lock")):  # one for all processes of a run
        return folder if folder.exists() else tiny.write_checkpoint(folder)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the tests of faults last, for they share a server with the others."""
    items.sort(key=lambda item: item.get_closest_marker("faults") is not None)


def pytest_itemcollected(item: pytest.Item) -> None:
    """Mark a test that starts a server or a browser, and one in tests/gpu."""
    if SERVER_FIXTURES & set(getattr(item, "fixturenames", ())):
        item.add_marker("server")
    if item.path.is_relative_to(Path(__file__).parent / "gpu"):
        item.add_marker("gpu")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the relative errors against the references, and what was counted under faults and load."""
    for report in terminalreporter.getreports("passed"):
        case = report.nodeid.rpartition("::")[2].rpartition("[")[2].rstrip("]")
        for name, figures in report.user_properties if report.when == "call" else ():
            shown = (
                f"{what} {figure:.1e}" if name == "relative errors" else f"{what}: {figure}"
                for what, figure in figures.items()
            )
            terminalreporter.write_line(f"{name}  {case:<28} {'  '.join(shown)}")
