"""The Dockerfile: what it copies and runs exists, and a linter has nothing to say. No test builds the image."""

import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from paths import ROOT
from running_server import program

from serve.cli.main import COMMANDS

DOCKERFILE = ROOT / "deploy" / "Dockerfile"
LINES = re.sub(r"\\\n\s*", "", re.sub(r"^#.*\n", "", DOCKERFILE.read_text(), flags=re.MULTILINE)).splitlines()
STAGES = {
    name: [line for line in text.splitlines() if line.strip()]
    for name, text in re.findall(r"^FROM \S+ AS (\S+)\n(.*?)(?=^FROM |\Z)", "\n".join(LINES), re.MULTILINE | re.DOTALL)
}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_the_linter_finds_nothing() -> None:
    if not Path(program("hadolint")).exists():
        pytest.skip("hadolint is not installed")
    done = subprocess.run([program("hadolint"), "--no-color", str(DOCKERFILE)], capture_output=True, text=True)
    assert (done.stdout, done.returncode) == ("", 0)


def test_what_is_copied_exists_and_reaches_the_builder() -> None:
    copied = {
        name for line in LINES if line.startswith("COPY ") and "--from" not in line for name in shlex.split(line)[1:-1]
    }
    assert copied > {"serve", "cosmos3_models", "pyproject.toml"}
    ignore = (ROOT / ".dockerignore").read_text().splitlines()
    assert "*" in ignore, "what is not named stays out"
    assert copied == {line.removeprefix("!") for line in ignore if line.startswith("!")}
    assert all((ROOT / name).exists() for name in copied)
    named = {line.split("--from=")[1].split()[0] for line in LINES if "--from=" in line}
    assert named <= set(STAGES)


def test_the_package_installs_from_what_is_copied() -> None:
    for packages in ("cpu-packages", "cuda-packages"):
        copied = {name for line in STAGES[packages] if line.startswith("COPY ") for name in line.split()[1:-1]}
        assert copied >= {PROJECT["readme"], *PROJECT["license-files"]}
        for folder in ("serve", "cosmos3_models"):
            assert f"COPY {folder} {folder}" in STAGES[packages]
        assert any("compileall" in line and "/opt/cosmos3/lib" in line for line in STAGES[packages])
        assert any("--constraint constraints.txt" in line for line in STAGES[packages])


def test_the_list_of_requirements_is_that_of_the_project(tmp_path: Path) -> None:
    (line,) = [line for line in STAGES["requirements"] if line.startswith("RUN ")]
    (script,) = re.findall(r"python -c '([^']+)' > requirements.txt", line)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["postgres"]]


def test_a_container_serves_on_all_of_its_interfaces_what_deploy_yaml_describes(tmp_path: Path) -> None:
    shutil.copy(ROOT / "deploy.yaml", tmp_path)
    (change,) = [line for line in STAGES["server"] if line.startswith("RUN sed ")]
    command = shlex.split(change.removeprefix("RUN ").split("&&")[0].replace("/etc/cosmos3/", ""))
    subprocess.run(command, cwd=tmp_path, check=True)
    usual, inside = (yaml.safe_load((folder / "deploy.yaml").read_text()) for folder in (ROOT, tmp_path))
    assert inside.pop("http_options") == usual.pop("http_options") | {"host": "0.0.0.0"}
    assert inside == usual


def test_its_command_user_and_health_check_are_those_of_the_server() -> None:
    server = "\n".join(STAGES["server"])
    assert 'ENTRYPOINT ["tini", "--", "cosmos3"]' in server
    assert "cosmos3" in PROJECT["scripts"]
    assert 'CMD ["serve", "/etc/cosmos3/deploy.yaml"]' in server
    assert "serve" in COMMANDS
    port = yaml.safe_load((ROOT / "deploy.yaml").read_text())["http_options"]["port"]
    assert f"EXPOSE {port}" in server
    assert f"http://127.0.0.1:{port}/health" in server
    for target in ("server", "cuda"):
        users = [line.split()[1] for line in STAGES[target] if line.startswith("USER ")]
        assert users[-1] == "1000"
    volume = yaml.safe_load((ROOT / "deploy.yaml").read_text())["applications"][0]["args"]["data_dir"]
    folder = volume.replace("~", "/home/cosmos3")
    assert f"VOLUME {folder}\n" in server
    (made,) = re.findall(r"install -d -m 700 -o cosmos3 -g cosmos3 (.+)", server)
    guide = (ROOT / "docs" / "deploy.md").read_text()
    mounted = set(re.findall(r"--volume \w+:(/home/cosmos3/[\w./-]+)", guide))
    assert folder in mounted
    assert mounted <= set(made.split()), "else a volume of Docker's would belong to root"
