"""The command line ``cosmos3`` itself."""

import pytest
from click.testing import CliRunner

from serve.cli import main as command_line


def interrupt(_: str) -> None:
    raise KeyboardInterrupt


def test_ctrl_c_while_a_command_is_still_imported_ends_it_as_a_shell_expects(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command_line.importlib, "import_module", interrupt)
    assert CliRunner().invoke(command_line.main, ["submit"]).exit_code == 130
