"""Imports go one way, and importing does nothing."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT


def imported_packages(path: Path) -> set[str]:
    packages = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            packages |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            packages.add((node.module or "").split(".")[0])
    return packages


@pytest.mark.parametrize("path", sorted((ROOT / "cosmos3_models").rglob("*.py")), ids=lambda path: path.name)
def test_the_models_know_neither_ray_nor_http(path: Path) -> None:
    assert not imported_packages(path) & {"ray", "fastapi", "starlette", "uvicorn", "serve"}


@pytest.mark.parametrize("path", sorted((ROOT / "serve").glob("*.py")), ids=lambda path: path.name)
def test_only_a_stages_worker_touches_torch(path: Path) -> None:
    assert path.name == "worker.py" or "torch" not in imported_packages(path)


@pytest.mark.parametrize("module", ["serve.app", "serve.ingress", "serve.runner", "serve.stages", "cosmos3_models"])
def test_who_builds_or_drives_the_graph_starts_without_torch(module: str) -> None:
    script = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], cwd=ROOT).returncode == 0


@pytest.mark.parametrize("package", ["cosmos3_models", "serve.app"])
def test_an_import_starts_and_writes_nothing(package: str, tmp_path: Path) -> None:
    script = (
        f"import sys, threading, {package}\n"
        "ray = sys.modules.get('ray')\n"
        "assert ray is None or not ray.is_initialized(), 'Ray was started'\n"
        "print(sorted(name for name in sys.modules if name in ('ray', 'fastapi')))\n"
    )
    environment = {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == ("[]" if package == "cosmos3_models" else "['fastapi', 'ray']")
    assert list(tmp_path.iterdir()) == []
