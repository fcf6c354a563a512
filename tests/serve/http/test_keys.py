"""API keys: a file that is named guards the server, whatever becomes of it."""

import logging
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from local_api import LocalClient, local_client
from paths import ROOT
from pydantic import ValidationError

from serve import secret_file
from serve.app import AppArgs, build_app
from serve.check import problems
from serve.http.access import Access
from serve.http.keys import ApiKeys

KEY, OTHER, THIRD = "0123456789abcdef", "fedcba9876543210", "A" * 16
NO_KEYS = {
    "empty": (b"", "no key"),
    "blank lines": (b"\n \n\t\n", "no key"),
    "a comment": (f"# keys of the team\n{KEY}\n".encode(), "a comment in line 1"),
    "a short one": (f"{KEY}\nx\n".encode(), "no key in line 2"),
    "a space within": (b"0123456789 abcdef\n", "no key in line 1"),
    "no ASCII": ("ключключключключ\n".encode(), "no key in line 1"),
    "binary": (b"\xff\xfe0123456789abcdef", "no key in line 1"),
    "a comment like a key": (b"#0123456789abcdef", "a comment in line 1"),
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "keys"


@pytest.mark.parametrize(("content", "told"), NO_KEYS.values(), ids=NO_KEYS)
def test_a_file_that_is_no_list_of_keys_keeps_the_server_from_starting(file: Path, content: bytes, told: str) -> None:
    file.write_bytes(content)
    with pytest.raises(ValueError, match=told) as error:
        build_app(AppArgs(device="cpu", api_keys_file=str(file)))
    assert KEY not in str(error.value)
    assert "team" not in str(error.value)


def test_a_file_that_is_not_there_keeps_the_server_from_starting(file: Path) -> None:
    with pytest.raises(ValueError, match="expected a file that can be read: No such file"):
        build_app(AppArgs(device="cpu", api_keys=(KEY,), api_keys_file=str(file)))
    with pytest.raises(ValueError, match="No such file"), local_client(file.parent, Access((), str(file))):
        pass


def test_the_check_of_deploy_yaml_names_the_file_and_the_line_and_no_key(file: Path) -> None:
    config = yaml.safe_load((ROOT / "deploy.yaml").read_text())
    config["applications"][0]["args"]["api_keys_file"] = str(file)
    file.write_text(f"{KEY}\nsecret\n")
    (problem,) = problems(yaml.safe_dump(config))
    assert problem.startswith(f"api_keys_file: got no key in line 2 of {file}, expected")
    assert "secret" not in problem
    file.write_text(f"  {KEY}\r\n\n{OTHER}")
    assert problems(yaml.safe_dump(config)) == []


@pytest.mark.parametrize("key", ["secret", "0123456789 abcdef", "0123456789abcdeé", "#0123456789abcdef", ""])
def test_keys_in_deploy_yaml_obey_the_same_rule_and_are_not_repeated(key: str) -> None:
    with pytest.raises(ValidationError) as error:
        AppArgs(api_keys=(key,))
    assert "expected a key: 16 or more visible ASCII characters" in str(error.value)
    config = yaml.safe_load((ROOT / "deploy.yaml").read_text())
    config["applications"][0]["args"] |= {"api_keys": [key], "api_key": "secret"}
    found = "\n".join(problems(yaml.safe_dump(config)))
    assert "api_keys.0: got" in found
    assert "api_key: Extra inputs are not permitted" in found
    for text in (str(error.value), found):
        assert not key or repr(key) not in text
        assert "secret" not in text


@pytest.fixture
def client(file: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalClient]:
    """A server that looks at its file of keys before every request."""
    monkeypatch.setattr(secret_file, "LOOK_S", 0)
    file.write_text(KEY)
    with local_client(file.parent, Access((THIRD,), str(file))) as opened:
        yield opened


def status(client: LocalClient, key: str | None) -> int:
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    return client.get("/v1/videos", headers=headers).status_code


def test_a_key_is_added_and_withdrawn_while_the_server_runs(client: LocalClient, file: Path) -> None:
    assert [status(client, key) for key in (KEY, OTHER, THIRD, None)] == [200, 401, 200, 401]
    file.write_text(f"{KEY}\n{OTHER}\n")
    assert [status(client, key) for key in (KEY, OTHER, THIRD)] == [200, 200, 200]
    mounted = file.with_name("next")
    mounted.write_text(OTHER)
    mounted.replace(file)
    assert [status(client, key) for key in (KEY, OTHER, THIRD)] == [401, 200, 200]


@pytest.mark.parametrize("content", [None, b"", b"\n", b"# " + KEY.encode(), b"\xff\xff"], ids=repr)
def test_a_file_without_a_key_lets_nobody_in_by_it_and_is_logged(
    client: LocalClient, file: Path, content: bytes | None, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "ray.serve")
    if content is None:
        file.unlink()
    else:
        file.write_bytes(content)
    assert [status(client, key) for key in (KEY, None, THIRD)] == [503, 503, 200]
    assert f"API keys: 0 read from {file}." in [r.message for r in caplog.records if r.levelno == logging.ERROR]
    file.write_text(KEY)
    assert status(client, KEY) == 200
    assert KEY not in caplog.text


def test_a_line_that_is_no_key_takes_no_other_key_away(
    client: LocalClient, file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file.write_text(f"{KEY}\nhunter2\n")
    assert [status(client, key) for key in (KEY, "hunter2")] == [200, 401]
    assert f"got no key in line 2 of {file}" in caplog.text
    assert "hunter2" not in caplog.text


def test_the_file_is_looked_at_once_a_second_at_most(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looks, now = [], 100.0
    monkeypatch.setattr(secret_file, "_state", lambda path: looks.append(path) or len(looks))
    monkeypatch.setattr(secret_file, "time", SimpleNamespace(monotonic=lambda: now))
    file.write_text(KEY)
    guard = ApiKeys((), str(file))
    for seconds, looked in ((0, 1), (0.99, 1), (1, 2), (1.99, 2)):
        now = 100 + seconds
        for _ in range(100):
            guard.check(KEY)
        assert len(looks) == looked


def test_a_key_of_any_characters_is_refused_and_not_an_error(client: LocalClient) -> None:
    for given in (b"Bearer \xff\xfe", b"Bearer " + b"x" * 10_000, b"Bearer", b"\xff", b""):
        assert client.get("/v1/videos", headers={b"Authorization": given}).status_code == 401


def test_withdrawal_reaches_a_running_server_within_seconds(file: Path) -> None:
    file.write_text(f"{KEY}\n{OTHER}")
    with local_client(file.parent, Access((), str(file))) as client:
        assert status(client, KEY) == 200
        file.write_text(OTHER)
        started = time.monotonic()
        while status(client, KEY) != 401:
            assert time.monotonic() - started < 30
            time.sleep(0.05)
        assert status(client, OTHER) == 200
