"""Fixtures that several test files share."""

from pathlib import Path

import pytest
import tiny


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random checkpoint in the public layout, sharded, as diffusers saved it. Do not write into it."""
    return tiny.write_checkpoint(tmp_path_factory.mktemp("checkpoint") / "tiny-cosmos3")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the relative errors against the references."""
    for report in terminalreporter.getreports("passed"):
        for name, errors in getattr(report, "user_properties", []):
            if name == "relative errors" and report.when == "call":
                case = report.nodeid.split("[")[-1].rstrip("]")
                columns = "  ".join(f"{what} {error:.1e}" for what, error in errors.items())
                terminalreporter.write_line(f"{case:<28} {columns}")
