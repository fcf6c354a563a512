"""A Python client of a server's video routes: submit, follow, download, delete."""

import json
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import httpx

T = TypeVar("T")

TIMEOUT = httpx.Timeout(30, connect=10)
RETRY_S = 1.0
GIVE_UP_S = 600.0  # since the server's last response; longer than a restart takes
FULL = 429
BUSY = (FULL, 503)
FILE_FIELD = "input_reference"
ENDS = ("completed", "failed", "deleted")


class RemoteError(Exception):
    """A request failed; the message is the server's if it sent one.

    Attributes:
        wait_s: seconds after which a retry may succeed; None if no retry can.
    """

    def __init__(self, message: str, wait_s: float | None = None) -> None:
        super().__init__(message)
        self.wait_s = wait_s


class Full(RemoteError):
    """The server takes no further video now."""


class Refused(RemoteError):
    """The connection was refused: no server listens at this address."""


class Message(NamedTuple):
    """One server-sent event."""

    id: str | None
    data: str


class RemoteVideos:
    """The video routes of one server.

    Args:
        url: the server's URL, without the path of a route.
        api_key: sent as bearer token.
        notice: called with a line for the user before each wait.

    Raises:
        RemoteError: the URL is malformed.
    """

    def __init__(self, url: str, api_key: str | None = None, notice: Callable[[str], None] = lambda _: None) -> None:
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        try:
            self._http = httpx.Client(base_url=url, headers=headers, timeout=TIMEOUT)
        except httpx.InvalidURL as error:
            raise RemoteError(f"{url}: {error}") from None
        self._notice = notice
        self._responded_at = time.monotonic()
        self._closed = False
        self._known = False  # it has responded, so a refused connection means that it is restarting

    def close(self) -> None:
        """Close the connections; a method that another thread is in raises."""
        self._closed = True
        self._http.close()

    def models(self) -> list[dict[str, Any]]:
        """Return the served model's card, once under each of its names.

        Raises:
            RemoteError: the server refused the key, or could not be reached.
        """

        def ask() -> list[dict[str, Any]]:
            with self._open("GET", "/v1/models") as response:
                cards: list[dict[str, Any]] = json.loads(response.read())["data"]
                return cards

        return self._patiently(ask)

    def submit(
        self,
        fields: dict[str, Any],
        key: str,
        reference: Path | None = None,
        again: bool = False,
        wait: Callable[[RemoteError], None] | None = None,
    ) -> str:
        """Submit a job and return its id.

        Args:
            reference: the picture or clip that the video starts from.
            key: idempotency key. A second call with the same key returns the same job, so a lost response is no harm.
            again: make a new job in place of one that has failed under the same key.
            wait: called before each retry, in place of a notice and a sleep.

        Raises:
            RemoteError: the server refused the request, or could not be reached.
        """

        def send() -> dict[str, Any]:
            return self._submit(fields, key, reference)

        record = self._patiently(send, wait)
        if again and record.get("status") == "failed":
            self._patiently(lambda: self.delete(record["id"]), wait)
            record = self._patiently(send, wait)
        return str(record["id"])

    def follow(self, video_id: str, show: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
        """Call ``show`` with every event, over as many connections as necessary, and return the last event.

        Raises:
            RemoteError: the server does not know the video, or could not be reached for too long.
        """
        last_id: str | None = None

        def listen() -> dict[str, Any]:
            nonlocal last_id
            headers = {} if last_id is None else {"Last-Event-ID": last_id}
            with self._open("GET", f"/v1/videos/{video_id}/events", headers=headers) as response:
                for message in read_messages(self._noting(response.iter_lines())):
                    event: dict[str, Any] = json.loads(message.data)
                    last_id = message.id or last_id
                    show(event)
                    if event["type"] in ENDS:
                        return event
            raise RemoteError("the event stream ended early", RETRY_S)

        return self._patiently(listen)

    def download(self, video_id: str, out: Path, variant: str | None = None) -> None:
        """Write the mp4, or another file of the video, to ``out``; if that fails, ``out`` is unchanged."""
        part = out.with_name(f"{out.name}.{video_id}.part")
        try:
            self._patiently(lambda: self._download(video_id, part, variant))
            part.replace(out)
        finally:
            part.unlink(missing_ok=True)

    def delete(self, video_id: str) -> None:
        """Delete the video; a running denoise stops."""
        with self._open("DELETE", f"/v1/videos/{video_id}") as response:
            response.read()

    def withdraw(self, fields: dict[str, Any], key: str, reference: Path | None = None) -> None:
        """Delete the job of an interrupted ``submit``, whether or not the server had received it."""
        self.delete(str(self._submit(fields, key, reference)["id"]))

    def _submit(self, fields: dict[str, Any], key: str, reference: Path | None) -> dict[str, Any]:
        with ExitStack() as opened:
            body: dict[str, Any] = {"json": fields}
            if reference is not None:  # a form, which sends the file as it is read
                texts = {name: value if isinstance(value, str) else json.dumps(value) for name, value in fields.items()}
                body = {"data": texts, "files": {FILE_FIELD: opened.enter_context(reference.open("rb"))}}
            headers = {"Idempotency-Key": key}
            response = opened.enter_context(self._open("POST", "/v1/videos", headers=headers, **body))
            record: dict[str, Any] = json.loads(response.read())
            return record

    def _download(self, video_id: str, part: Path, variant: str | None) -> None:
        query = {"variant": variant} if variant else {}
        with self._open("GET", f"/v1/videos/{video_id}/content", params=query) as response, part.open("wb") as file:
            for chunk in self._noting(response.iter_bytes()):
                file.write(chunk)

    def _patiently(self, action: Callable[[], T], wait: Callable[[RemoteError], None] | None = None) -> T:
        """Return the result of ``action``, which is retried while a retry may succeed."""
        known = self._known
        while True:
            try:
                return action()
            except RemoteError as error:
                final = error.wait_s is None or self._closed or (isinstance(error, Refused) and not known)
                if final or time.monotonic() - self._responded_at > GIVE_UP_S:
                    raise
                known = True
                (wait or self._wait)(error)

    def _wait(self, error: RemoteError) -> None:
        if error.wait_s:
            self._notice(f"{error}; trying again in {error.wait_s:.0f} s")
            time.sleep(error.wait_s)

    def _note(self, response: httpx.Response) -> None:
        """Note a response of the server itself; a proxy in front of it answers too, but never with a full queue."""
        if response.is_success or response.status_code == FULL or _error_of(response) is not None:
            self._responded_at = time.monotonic()
            self._known = True

    def _noting(self, parts: Iterable[T]) -> Iterator[T]:
        """Yield the parts of a response; each one shows that the server is alive, since a stream may run for hours."""
        for part in parts:
            self._responded_at = time.monotonic()
            yield part

    @contextmanager
    def _open(self, method: str, path: str, **options: Any) -> Iterator[httpx.Response]:
        """Open a successful response whose body is not read yet.

        Raises:
            RemoteError: the connection failed, or the server sent an error.
        """
        url = self._http.base_url.join(path)
        try:
            with self._http.stream(method, path, **options) as response:
                self._note(response)
                _check(response)
                yield response
        except httpx.ReadTimeout:  # a queue may stand still for long, and a resumed stream misses nothing
            raise RemoteError(f"{url} does not answer", wait_s=0) from None
        except httpx.ConnectError as error:
            raise Refused(f"cannot connect to {self._http.base_url}: {error}", RETRY_S) from None
        except (httpx.NetworkError, httpx.TimeoutException, httpx.RemoteProtocolError) as error:
            raise RemoteError(f"the connection to {self._http.base_url} broke ({error})", RETRY_S) from None
        except httpx.HTTPError as error:
            raise RemoteError(f"{url}: {error}") from None


def read_messages(lines: Iterable[str]) -> Iterator[Message]:
    """Yield the server-sent events in a stream of lines; comments and other fields are ignored."""
    fields: dict[str, str] = {}
    for line in lines:
        if line:
            name, _, value = line.partition(":")
            fields[name] = value.removeprefix(" ")
        elif "data" in fields:
            yield Message(fields.get("id"), fields["data"])
            fields = {}


def _check(response: httpx.Response) -> None:
    """Raise the error of a response that is not a success."""
    if response.is_success:
        return
    retry_after = response.headers.get("retry-after", "")
    wait_s = max(RETRY_S, float(retry_after)) if retry_after.isdigit() else RETRY_S
    message = _error_of(response)
    kind = Full if response.status_code == FULL else RemoteError
    if message is None:
        raise kind(f"the server returned {response.status_code} {response.reason_phrase}", wait_s)
    raise kind(message, wait_s if response.status_code in BUSY else None)


def _error_of(response: httpx.Response) -> str | None:
    """The message of an error in the server's form; None for any other, such as a proxy's."""
    try:
        return str(json.loads(response.read())["error"]["message"])
    except (ValueError, LookupError, TypeError):
        return None
