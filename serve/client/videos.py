"""A server's videos from the outside: submit, follow, download, delete."""

import json
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import httpx

T = TypeVar("T")

TIMEOUT = httpx.Timeout(30, connect=10)
RETRY_S = 1.0
GIVE_UP_S = 600.0  # from the server's last sign of life; longer than a server takes to restart
FULL = 429
BUSY = (FULL, 503)
ENDS = ("completed", "failed", "deleted")


class RemoteError(Exception):
    """What went wrong, in the server's words where it had some.

    Attributes:
        wait_s: seconds after which another try may succeed; None if none can.
    """

    def __init__(self, message: str, wait_s: float | None = None) -> None:
        super().__init__(message)
        self.wait_s = wait_s


class Refused(RemoteError):
    """Nobody listens there."""


class Message(NamedTuple):
    """One server-sent event."""

    id: str | None
    data: str


class RemoteVideos:
    """The video routes of one server.

    Args:
        url: of the server, without the path of a route.
        api_key: sent as bearer key.
        notice: called with a line for the user when something has to be waited for.
    """

    def __init__(self, url: str, api_key: str | None = None, notice: Callable[[str], None] = lambda _: None) -> None:
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        try:
            self._http = httpx.Client(base_url=url, headers=headers, timeout=TIMEOUT)
        except httpx.InvalidURL as error:
            raise RemoteError(f"{url}: {error}") from None
        self._notice = notice
        self._heard_at = time.monotonic()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def submit(self, fields: dict[str, Any], key: str) -> str:
        """The id of the new job. The same key again gives the same job, so that a lost answer can be asked for again.

        Raises:
            RemoteError: the server refuses the request, or is not there.
        """
        return self._patiently(lambda: self._submit(fields, key), known=False)

    def follow(self, video_id: str, show: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
        """Call ``show`` with every event, over as many connections as it takes; the last event.

        Raises:
            RemoteError: the server does not know the video, or stays away.
        """
        last_id: str | None = None

        def listen() -> dict[str, Any]:
            nonlocal last_id
            headers = {} if last_id is None else {"Last-Event-ID": last_id}
            with self._open("GET", f"/v1/videos/{video_id}/events", headers=headers) as response:
                for message in read_messages(self._heard(response.iter_lines())):
                    event: dict[str, Any] = json.loads(message.data)
                    last_id = message.id or last_id
                    show(event)
                    if event["type"] in ENDS:
                        return event
            raise RemoteError("the events broke off", RETRY_S)

        return self._patiently(listen)

    def download(self, video_id: str, out: Path) -> None:
        """Write the mp4 to ``out``, which is whole or untouched."""
        part = out.with_name(f"{out.name}.{video_id}.part")
        try:
            self._patiently(lambda: self._download(video_id, part))
            part.replace(out)
        finally:
            part.unlink(missing_ok=True)

    def delete(self, video_id: str) -> None:
        """Stop making the video and forget it."""
        with self._open("DELETE", f"/v1/videos/{video_id}") as response:
            response.read()

    def withdraw(self, fields: dict[str, Any], key: str) -> None:
        """Delete the job of a ``submit`` that was interrupted, whether or not the server had heard of it."""
        self.delete(self._submit(fields, key))

    def _submit(self, fields: dict[str, Any], key: str) -> str:
        with self._open("POST", "/v1/videos", json=fields, headers={"Idempotency-Key": key}) as response:
            return str(json.loads(response.read())["id"])

    def _download(self, video_id: str, part: Path) -> None:
        with self._open("GET", f"/v1/videos/{video_id}/content") as response, part.open("wb") as file:
            for chunk in self._heard(response.iter_bytes()):
                file.write(chunk)

    def _patiently(self, action: Callable[[], T], known: bool = True) -> T:
        """The result of ``action``, tried again while that makes sense.

        Args:
            known: the server has been there, so that a refused connection only means that it restarts.
        """
        while True:
            try:
                return action()
            except RemoteError as error:
                absent = isinstance(error, Refused) and not known
                if error.wait_s is None or absent or time.monotonic() - self._heard_at > GIVE_UP_S:
                    raise
                known = True
                if error.wait_s:
                    self._notice(f"{error}; trying again in {error.wait_s:.0f} s")
                    time.sleep(error.wait_s)

    def _note(self, response: httpx.Response) -> None:
        """Whether the server is there: a proxy before it may answer for it, but does not say that it is full."""
        if response.is_success or response.status_code == FULL or _error_of(response) is not None:
            self._heard_at = time.monotonic()

    def _heard(self, parts: Iterable[T]) -> Iterator[T]:
        """Parts of an answer, each of which says that the server is there: a stream may run for hours."""
        for part in parts:
            self._heard_at = time.monotonic()
            yield part

    @contextmanager
    def _open(self, method: str, path: str, **options: Any) -> Iterator[httpx.Response]:
        """A successful answer, its body not yet read."""
        url = self._http.base_url.join(path)
        try:
            with self._http.stream(method, path, **options) as response:
                self._note(response)
                _check(response)
                yield response
        except httpx.ReadTimeout:  # a queue may not move for long, and a stream that is opened anew misses nothing
            raise RemoteError(f"{url} does not answer", wait_s=0) from None
        except httpx.ConnectError as error:
            raise Refused(f"cannot connect to {self._http.base_url}: {error}", RETRY_S) from None
        except (httpx.NetworkError, httpx.TimeoutException, httpx.RemoteProtocolError) as error:
            raise RemoteError(f"the connection to {self._http.base_url} broke ({error})", RETRY_S) from None
        except httpx.HTTPError as error:
            raise RemoteError(f"{url}: {error}") from None


def read_messages(lines: Iterable[str]) -> Iterator[Message]:
    """Server-sent events of their lines; comments and fields of no use here are passed over."""
    fields: dict[str, str] = {}
    for line in lines:
        if line:
            name, _, value = line.partition(":")
            fields[name] = value.removeprefix(" ")
        elif "data" in fields:
            yield Message(fields.get("id"), fields["data"])
            fields = {}


def _check(response: httpx.Response) -> None:
    """Raise what an answer other than success says."""
    if response.is_success:
        return
    retry_after = response.headers.get("retry-after", "")
    wait_s = max(RETRY_S, float(retry_after)) if retry_after.isdigit() else RETRY_S
    message = _error_of(response)
    if message is None:
        raise RemoteError(f"the server answers {response.status_code} {response.reason_phrase}", wait_s)
    raise RemoteError(message, wait_s if response.status_code in BUSY else None)


def _error_of(response: httpx.Response) -> str | None:
    """The message of an error in the server's form. None of another: that is its proxy's, while it starts or stops."""
    try:
        return str(json.loads(response.read())["error"]["message"])
    except (ValueError, LookupError, TypeError):
        return None
