"""Imports go one way, and importing does nothing."""

import ast
import json
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from paths import ROOT

from serve.cli.main import COMMANDS

# Imported late and only on a GPU: the first comes with PyTorch for CUDA, the second is optional.
ON_A_GPU = {"triton", "fa3_fwd_interface", "flash_attn"}

# The parts of serve, each of which imports only parts before it. Client, command lines and check stand beside them.
LAYERS = (
    *("errors", "file_paths", "whole_files", "secret_file", "tracing", "inputs", "schema", "guards", "upsampler"),
    *("graph", "estimates", "jobs", "http", "ingress", "app"),
)
BESIDE = {"client", "cli", "check", "__init__", "__main__"}

# What os lacks on macOS, and some of it on arm64 or in small containers.
LINUX_ONLY = [
    "O_DIRECT",
    "O_TMPFILE",
    "copy_file_range",
    "eventfd",
    "memfd_create",
    "pidfd_open",
    "posix_fadvise",
    "posix_fallocate",
    "sched_getaffinity",
    "sched_setaffinity",
    "setns",
    "splice",
    "unshare",
]

# Imported in this order. None of them needs torch.
COMMAND_LINE = [f"serve.cli.{name}" for name in ("main", *COMMANDS)]
LIGHT = [
    "cosmos3_models",
    *COMMAND_LINE,
    "serve.app",
    "serve.ingress.ingress",
    "serve.jobs.runner",
    "serve.graph.stages",
    "serve.graph.media_stages",
]
CLIENTS = ("serve.jobs.webhooks.deliveries", "serve.upsampler.chat_server")  # of HTTP, in a server that needs them
WATCHED = ("fastapi", "ray", "torch", *CLIENTS)


def imported_packages(path: Path) -> set[str]:
    packages = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            packages |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            packages.add((node.module or "").split(".")[0])
    return packages


def imported_parts(part: str) -> set[str]:
    """The other files and folders of serve that one of them imports."""
    parts = set()
    for path in [ROOT / f"serve/{part}.py", *(ROOT / f"serve/{part}").rglob("*.py")]:
        tree = ast.parse(path.read_text()) if path.exists() else ast.Module()
        for node in ast.walk(tree):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
            module = node.module or "" if isinstance(node, ast.ImportFrom) else ""
            modules = [f"serve.{name}" for name in names] if module == "serve" else [module, *names]
            parts |= {name.split(".")[1] for name in modules if name.startswith("serve.")}
    return parts - {part}


def third_party(package: str) -> set[str]:
    imported = set().union(*(imported_packages(path) for path in (ROOT / package).rglob("*.py")))
    return imported - set(sys.stdlib_module_names) - {"serve", "cosmos3_models"}


@cache
def declared_distributions() -> dict[str, Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    requirements = [Requirement(line) for line in project["dependencies"]]
    return {canonicalize_name(requirement.name): requirement for requirement in requirements}


@pytest.mark.parametrize("package", ["serve", "cosmos3_models"])
def test_every_import_is_a_declared_dependency(package: str) -> None:
    distributions = packages_distributions()
    for name in third_party(package) - ON_A_GPU:
        providers = {canonicalize_name(distribution) for distribution in distributions[name]}
        assert providers & set(declared_distributions()), f"{name} comes from {providers}"


def test_the_declared_fastapi_has_server_sent_events() -> None:
    assert "0.135.0" in declared_distributions()["fastapi"].specifier
    assert "0.134.9" not in declared_distributions()["fastapi"].specifier


def test_imports_and_a_whole_video_need_no_call_that_linux_alone_has(tmp_path: Path) -> None:
    script = (
        "import os, pathlib\n"
        f"for name in {LINUX_ONLY}:\n"
        "    if hasattr(os, name): delattr(os, name)\n"
        "import importlib, pkgutil, serve, cosmos3_models\n"
        "for package in (serve, cosmos3_models):\n"
        "    for module in pkgutil.walk_packages(package.__path__, f'{package.__name__}.'):\n"
        "        if not module.name.endswith(('_kernels', '__main__')): importlib.import_module(module.name)\n"
        "from serve.cli.main import main\n"
        "main('generate x --sound --num-frames 5 --size 32x32 --num-inference-steps 1 --device cpu '\n"
        "     '-o made.mp4'.split(), standalone_mode=False)\n"
        "print('torch._dynamo' in __import__('sys').modules)\n"
    )
    environment = {"PYTHONPATH": str(ROOT), "HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "made.mp4").stat().st_size > 0
    assert done.stdout.split()[-1] == "False", "PyTorch's compiler, which takes two seconds to import, came in"


@pytest.mark.parametrize("package", ["serve", "cosmos3_models"])
def test_no_file_of_linux_alone_is_opened(package: str) -> None:
    for path in (ROOT / package).rglob("*.py"):
        texts = [node.value for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant)]
        opened = [text for text in texts if isinstance(text, str) and text.startswith(("/proc", "/sys/", "/dev/"))]
        assert not opened, path


@pytest.mark.parametrize("path", sorted((ROOT / "cosmos3_models").rglob("*.py")), ids=lambda path: path.name)
def test_the_models_know_neither_ray_nor_http(path: Path) -> None:
    assert not imported_packages(path) & {"ray", "fastapi", "starlette", "uvicorn", "serve"}


@pytest.mark.parametrize("part", LAYERS)
def test_each_part_of_serve_imports_only_parts_below_it(part: str) -> None:
    assert imported_parts(part) <= set(LAYERS[: LAYERS.index(part)])


def test_every_part_of_serve_has_its_place() -> None:
    assert imported_parts("app") == {"file_paths", "graph", "guards", "http", "ingress", "jobs", "upsampler"}, (
        "the search finds imports"
    )
    parts = {
        path.stem for path in (ROOT / "serve").iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()
    }
    assert parts == {*LAYERS, *BESIDE}


def test_the_client_imports_nothing_of_the_server() -> None:
    assert imported_parts("client") <= {"errors", "inputs", "schema", "whole_files"}


@pytest.mark.parametrize("path", sorted((ROOT / "serve").rglob("*.py")), ids=lambda path: path.name)
def test_only_a_stages_worker_a_guard_and_the_command_without_a_server_touch_torch(path: Path) -> None:
    assert path.name in ("worker.py", "cosmos_guardrail.py", "generate.py") or "torch" not in imported_packages(path)


@dataclass(frozen=True)
class Imported:
    """What was there after the modules had been imported one after the other in a new process."""

    packages: dict[str, list[str]]
    ray_started: bool
    files: list[Path]


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory) -> Imported:
    folder = tmp_path_factory.mktemp("home")
    script = (
        "import importlib, json, sys\n"
        "packages = {}\n"
        f"for module in {LIGHT}:\n"
        "    importlib.import_module(module)\n"
        f"    packages[module] = [name for name in {WATCHED} if name in sys.modules]\n"
        "print(json.dumps({'packages': packages, 'ray_started': sys.modules['ray'].is_initialized()}))\n"
    )
    environment = {"PYTHONPATH": str(ROOT), "HOME": str(folder), "XDG_CACHE_HOME": str(folder)}
    environment["PYTHONDONTWRITEBYTECODE"] = "1"
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return Imported(**json.loads(done.stdout), files=list(folder.iterdir()))


def test_the_models_import_neither_ray_nor_fastapi(imported: Imported) -> None:
    assert imported.packages["cosmos3_models"] == []


@pytest.mark.parametrize("module", COMMAND_LINE)
def test_a_command_starts_before_ray_is_imported(imported: Imported, module: str) -> None:
    assert imported.packages[module] == []


@pytest.mark.parametrize("module", LIGHT)
def test_building_and_driving_the_graph_imports_no_torch(imported: Imported, module: str) -> None:
    assert "torch" not in imported.packages[module]


@pytest.mark.parametrize("module", LIGHT)
def test_a_server_that_sends_no_requests_imports_no_client(imported: Imported, module: str) -> None:
    assert not set(CLIENTS) & set(imported.packages[module])


def test_an_import_starts_and_writes_nothing(imported: Imported) -> None:
    assert imported.packages["serve.app"] == ["fastapi", "ray"]
    assert not imported.ray_started
    assert imported.files == []
