"""The Hugging Face Hub's part in a download, served from a folder on this machine."""

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

COMMIT = "0a1b" * 10
REPOSITORY = "nvidia/Cosmos3-Nano"


class FakeHub(ThreadingHTTPServer):
    """One model with one revision, ``main``.

    Attributes:
        refusal: status and ``X-Error-Code`` of every response, while there is one.
        gated: whether the files themselves are refused, as the Hub does until a licence is accepted.
        read: bytes sent of each file so far.
        requests: every path that was asked for.
    """

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder = folder
        self.refusal: tuple[int, str] | None = None
        self.gated = False
        self.read: dict[str, int] = {}
        self.requests: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def files(self) -> list[str]:
        return sorted(str(file.relative_to(self.folder)) for file in self.folder.rglob("*") if file.is_file())


class _Handler(BaseHTTPRequestHandler):
    server: FakeHub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.server.requests.append(self.path)
        path = self.path.partition("?")[0]
        api = f"/api/models/{REPOSITORY}"
        if self.server.refusal:
            status, code = self.server.refusal
            return self._send(status, {"error": code}, {"X-Error-Code": code})
        if found := re.fullmatch(f"{api}(/revision/(.+))?", path):
            if found[2] not in (None, "main", COMMIT):
                return self._send(404, {"error": "no revision"}, {"X-Error-Code": "RevisionNotFound"})
            siblings = [self._listed(name) | {"rfilename": name} for name in self.server.files()]
            return self._send(200, {"id": REPOSITORY, "modelId": REPOSITORY, "sha": COMMIT, "siblings": siblings})
        if path == f"{api}/tree/{COMMIT}":
            return self._send(200, [self._listed(name) for name in self.server.files()])
        if found := re.fullmatch(f"/{REPOSITORY}/resolve/{COMMIT}/(.+)", path):
            if self.server.gated:
                return self._send(403, {"error": "gated"}, {"X-Error-Code": "GatedRepo"})
            return self._send_file(found[1])
        return self._send(404, {"error": "no model"}, {"X-Error-Code": "RepoNotFound"})

    do_HEAD = do_GET

    def _listed(self, name: str) -> dict[str, Any]:
        return {"type": "file", "path": name, "oid": _digest(name), "size": (self.server.folder / name).stat().st_size}

    def _send_file(self, name: str) -> None:
        file = self.server.folder / name
        if not file.is_file():
            return self._send(404, {"error": name}, {"X-Error-Code": "EntryNotFound"})
        size = file.stat().st_size
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        start, end = (int(wanted[1]), min(int(wanted[2] or size), size - 1)) if wanted else (0, size - 1)
        headers = {"ETag": f'"{_digest(name)}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        if wanted:
            headers["Content-Range"] = f"bytes {start}-{end}/{size}"
        self._start(206 if wanted else 200, headers, end + 1 - start)
        if self.command == "GET":
            with file.open("rb") as opened:
                opened.seek(start)
                data = opened.read(end + 1 - start)
            self.server.read[name] = self.server.read.get(name, 0) + len(data)  # before the client can have it
            self.wfile.write(data)

    def _send(self, status: int, body: object, headers: dict[str, str] | None = None) -> None:
        data = json.dumps(body).encode()
        self._start(status, {"Content-Type": "application/json"} | (headers or {}), len(data))
        if self.command == "GET":
            self.wfile.write(data)

    def _start(self, status: int, headers: dict[str, str], length: int) -> None:
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(length)}).items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def fake_hub(folder: Path) -> Iterator[FakeHub]:
    """A running hub that serves the files of a folder."""
    with FakeHub(folder) as hub:
        threading.Thread(target=hub.serve_forever, args=(0.02,), daemon=True).start()
        try:
            yield hub
        finally:
            hub.shutdown()


def use_hub(monkeypatch: pytest.MonkeyPatch, url: str, cache: Path) -> None:
    """Let this process take the Hub to be at ``url``, and its cache in ``cache``."""
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)


def _digest(name: str) -> str:
    return hashlib.sha1(name.encode()).hexdigest()
