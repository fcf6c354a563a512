"""A real PostgreSQL server of the test run's own."""

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import psycopg


def binaries() -> Path | None:
    """The folder of initdb and postgres, from the newest version installed."""
    found = shutil.which("initdb")
    folders = [Path(found).parent] if found else sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    return next((folder for folder in reversed(folders) if (folder / "initdb").exists()), None)


class Postgres:
    """A server over a fresh folder, on a port of this machine; it can be stopped, killed and started again."""

    def __init__(self, port: int) -> None:
        found = binaries()
        assert found is not None
        # PostgreSQL refuses to run as root, and pytest's folders are closed to everybody else.
        self._user = "postgres" if os.geteuid() == 0 else None
        self._binaries, self._port = found, port
        self._folder = Path(tempfile.mkdtemp(prefix="postgres-"))
        if self._user:
            shutil.chown(self._folder, self._user)
        command = [found / "initdb", "-D", self._folder / "data", "-U", "cosmos3", "-A", "trust", "--no-sync"]
        subprocess.run(command, user=self._user, cwd=self._folder, check=True, capture_output=True)

    @property
    def url(self) -> str:
        return f"postgresql://cosmos3@127.0.0.1:{self._port}/postgres"

    def start(self) -> None:
        where = ["-D", self._folder / "data", "-p", str(self._port), "-k", self._folder, "-h", "127.0.0.1"]
        with (self._folder / "log").open("a") as log:
            self._server = subprocess.Popen(
                [self._binaries / "postgres", *where], user=self._user, cwd=self._folder, stdout=log, stderr=log
            )
        deadline = time.monotonic() + 30
        while True:
            try:
                psycopg.connect(self.url, connect_timeout=2).close()
                return
            except psycopg.OperationalError:
                assert time.monotonic() < deadline, (self._folder / "log").read_text()[-2000:]
                time.sleep(0.1)

    def stop(self, how: signal.Signals = signal.SIGQUIT) -> None:
        """Stop at once, without closing the connections."""
        self._server.send_signal(how)
        self._server.wait(timeout=30)

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """All of its processes stand still meanwhile: connections stay open and nothing answers."""
        processes = [psutil.Process(self._server.pid), *psutil.Process(self._server.pid).children(recursive=True)]
        for process in processes:
            with suppress(psutil.NoSuchProcess):  # a worker of the server's own ended meanwhile
                process.suspend()
        try:
            yield
        finally:
            for process in processes:
                with suppress(psutil.NoSuchProcess):
                    process.resume()

    def end_sessions(self, but: "psycopg.Connection[Any]") -> None:
        """Close every connection but one."""
        but.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()")

    def remove(self) -> None:
        """End it for good."""
        self.stop()
        shutil.rmtree(self._folder)
