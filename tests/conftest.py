"""Fixtures and markers for all tests. Nothing here imports Ray or diffusers, so the GPU tests run without them."""

import signal
from importlib.util import find_spec
from pathlib import Path

import pytest

pytest_plugins = ["cluster"] if find_spec("ray") else []

# A shell gives a command in the background an ignored Ctrl-C, which all that the tests start would inherit.
signal.signal(signal.SIGINT, signal.default_int_handler)

SERVER_FIXTURES = {"cluster", "browser", "launch", "two_nodes"}


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random checkpoint in the public layout, sharded, as diffusers saved it. Do not write into it."""
    import tiny  # imports diffusers, which machines for the GPU tests may lack

    return tiny.write_checkpoint(tmp_path_factory.mktemp("checkpoint") / "tiny-cosmos3")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that start a server or a browser, and those in tests/gpu."""
    for item in items:
        if SERVER_FIXTURES & set(getattr(item, "fixturenames", ())):
            item.add_marker("server")
        if item.path.is_relative_to(Path(__file__).parent / "gpu"):
            item.add_marker("gpu")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the relative errors against the references, and what was counted under faults and load."""
    for report in terminalreporter.getreports("passed"):
        case = report.nodeid.split("::")[-1].split("[")[-1].rstrip("]")
        for name, figures in report.user_properties if report.when == "call" else ():
            shown = (
                f"{what} {figure:.1e}" if name == "relative errors" else f"{what}: {figure}"
                for what, figure in figures.items()
            )
            terminalreporter.write_line(f"{name}  {case:<28} {'  '.join(shown)}")
