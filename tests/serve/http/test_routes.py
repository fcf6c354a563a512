"""What HTTP asks of every route: methods, queries, headers, bodies, and what is logged of them."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import fastapi
import pytest
from answers import check_error
from fakes import OF_A_VIDEO
from local_api import MP4, LocalClient, local_client

from serve.errors import DatabaseUnavailable
from serve.http import events as events_module
from serve.schema import VideoRequest

GETS = [
    "/",
    "/health",
    "/docs",
    "/openapi.json",
    "/v1/models",
    "/v1/videos",
    *(f"/v1/videos/VIDEO{end}" for end in ("", "/content")),
]


@pytest.fixture
def client(tmp_path: Path) -> Iterator[LocalClient]:
    with local_client(tmp_path) as opened:
        yield opened


def finished(client: LocalClient) -> str:
    client.submit()
    video: str = client.call(client.service.finish)
    return video


def sent(client: LocalClient, body: bytes, content_type: str | None = "application/json", **headers: str) -> Any:
    """The answer to a body on the sync route, which shows in its headers what was understood."""
    kind = {} if content_type is None else {"content-type": content_type}
    return client.post("/v1/videos/sync", content=body, headers=kind | headers)


def test_the_sync_route_answers_one_frame_with_a_png_and_more_with_an_mp4(client: LocalClient) -> None:
    for frames, kind, start in ((1, "image/png", b"\x89PNG"), (5, "video/mp4", MP4)):
        answer = sent(client, json.dumps({"prompt": "x", "num_frames": frames}).encode())
        assert (answer.status_code, answer.headers["content-type"]) == (200, kind)
        assert answer.content.startswith(start)
        assert answer.headers["x-seed"]


# ---- methods


@pytest.mark.parametrize("path", GETS)
def test_every_get_answers_head_with_the_same_headers_and_no_body(client: LocalClient, path: str) -> None:
    path = path.replace("VIDEO", finished(client))
    get, head = client.get(path), client.head(path)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers == get.headers


def test_head_of_an_endless_stream_of_events_ends(client: LocalClient) -> None:
    response = client.head(f"/v1/videos/{client.submit()}/events")
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/event-stream")
    assert client.head("/v1/videos/video_0/events").status_code == 404


@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        ("/v1/videos", "GET, HEAD, POST, OPTIONS"),
        ("/v1/videos/video_0", "GET, HEAD, DELETE, OPTIONS"),
        ("/v1/videos/video_0/content", "GET, HEAD, OPTIONS"),
        ("/health", "GET, HEAD, OPTIONS"),
    ],
)
def test_a_method_that_a_route_does_not_take_is_refused_with_those_that_it_takes(
    client: LocalClient, path: str, allowed: str
) -> None:
    response = client.patch(path)
    check_error(response, 405, "method_not_allowed")
    options = client.options(path)
    assert options.status_code == 204
    assert response.headers["allow"] == options.headers["allow"] == allowed


# ---- queries, headers


@pytest.mark.parametrize(
    ("path", "param"),
    [
        ("/v1/videos?state=failed", "state"),
        ("/v1/videos?limit=1&limit=2", "limit"),
        ("/v1/videos?limit=1_0", "limit"),
        ("/v1/videos?limit=%205", "limit"),
        ("/v1/videos/video_0?x", "x"),
        ("/v1/videos/video_0/events?after=1", "after"),
        ("/v1/models?self=1", "self"),
    ],
)
def test_what_a_route_would_ignore_in_the_query_is_refused_by_name(client: LocalClient, path: str, param: str) -> None:
    error = check_error(client.get(path), 400, "invalid_value")
    assert error["param"] == param
    assert error["message"].startswith(f"{param}: got ")


def test_events_are_not_held_back_by_proxies(client: LocalClient) -> None:
    response = client.get(f"/v1/videos/{finished(client)}/events")
    assert response.headers["x-accel-buffering"] == "no"
    assert response.headers["cache-control"] == "no-cache"
    assert '"type": "completed"' in response.text


@pytest.mark.parametrize("key", [b"\xff", "schlüssel".encode(), b"a\tb", b"x" * 256, b""])
def test_an_idempotency_key_that_is_no_ascii_is_refused(client: LocalClient, key: bytes) -> None:
    response = client.post("/v1/videos", json={"prompt": "x"}, headers={b"Idempotency-Key": key})
    assert check_error(response, 400, "invalid_value")["param"] == "idempotency-key"


@pytest.mark.parametrize(
    ("name", "shown"),
    [("Видео", "%D0%92%D0%B8%D0%B4%D0%B5%D0%BE"), ("50% a\nb", "50%25 a%0Ab"), ("demo-1.0 (x)", "demo-1.0 (x)")],
)
def test_a_model_of_any_name_is_served(tmp_path: Path, name: str, shown: str) -> None:
    with local_client(tmp_path, served_model_name=name) as client:
        response = client.post("/v1/videos/sync", json={"prompt": "x", "model": name})
    assert (response.status_code, response.content) == (200, MP4)
    assert response.headers["x-model"] == shown


# ---- bodies


@pytest.mark.parametrize(
    "field", ["self", "cls", "fields", "given", "error", "model_config", "__init__", "__class__", "", "é", "\0", "a\nb"]
)
def test_a_field_of_any_name_is_refused_as_unknown(client: LocalClient, field: str) -> None:
    for response in (
        client.post("/v1/videos", json={"prompt": "x", field: 1}),
        client.post("/v1/videos", data={"prompt": "x", field: "1"}),
    ):
        error = check_error(response, 400, "invalid_value")
        assert error["param"] == field
        assert "this field is unknown" in error["message"]


NUMBERS = [
    "width",
    "height",
    "num_frames",
    "fps",
    "num_inference_steps",
    "guidance_scale",
    "flow_shift",
    "seed",
    "velocity_reuse",
    "guidance_reuse",
    "seconds",
]
NO_NUMBERS = ["1_0", " 1 ", "1 ", "+1", "٣", "1.", ".5", "nan", "inf", "0x10", "", "true", "1e", "1\n"]


@pytest.mark.parametrize("field", NUMBERS)
def test_text_that_nobody_writes_for_a_number_is_refused_everywhere(client: LocalClient, field: str) -> None:
    assert set(NUMBERS) < set(VideoRequest.model_fields)
    for text in NO_NUMBERS:
        for kind in ("json", "data"):
            response = client.post("/v1/videos", **{kind: {"prompt": "x", field: text}})  # type: ignore[arg-type]
            assert check_error(response, 400, "invalid_value")["param"] == field, text


def test_a_form_takes_plain_numbers(client: LocalClient) -> None:
    form = {
        "prompt": "x",
        "seed": "5",
        "guidance_scale": "2.5",
        "flow_shift": "1e1",
        "velocity_reuse": "2",
        "seconds": "2",
    }
    assert client.post("/v1/videos/sync", data=form).headers["x-seed"] == "5"


@pytest.mark.parametrize("size", ["٣٢x٣٢", "32x32\n", " 32x32"])
def test_a_size_has_plain_digits(client: LocalClient, size: str) -> None:
    response = client.post("/v1/videos", json={"prompt": "x", "size": size})
    assert check_error(response, 400, "invalid_value")["param"] == "size"


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (b'{"prompt": "\\ud800"}', "surrogates not allowed"),
        (b'{"prompt": "x", "\\udfff": 1}', "surrogates not allowed"),
        (b'{"prompt": "x", "seed": ' + b"9" * 5000 + b"}", "4300 digits"),
        (b'{"prompt": "x", "seed": 1, "seed": 2}', "seed: got the field twice"),
        (b'{"prompt": "x", "seed": 1e999}', "seed: got inf"),
        (b'{"prompt": "x", "seed": NaN}', "seed: got nan"),
        (b'{"prompt": ' + b"[" * 100_000, "malformed JSON"),
        (b'{"prompt": "x', "malformed JSON"),
        (b"\xff", "malformed JSON"),
        (b"null", "got a JSON NoneType"),
    ],
    ids=lambda value: str(value)[:24],
)
def test_json_that_python_would_take_or_choke_on_is_refused(client: LocalClient, body: bytes, told: str) -> None:
    assert told in check_error(sent(client, body), 400, "invalid_value")["message"]


def test_json_of_any_depth_is_refused(client: LocalClient) -> None:
    for depth in range(600, 1100, 5):
        check_error(sent(client, b'{"prompt": ' + b"[" * depth + b"]" * depth + b"}"), 400, "invalid_value")


def test_json_that_curl_calls_a_form_works(client: LocalClient) -> None:
    body = b' {"prompt": "x", "seed": 7}'
    for kind in ("application/x-www-form-urlencoded", "application/json; charset=utf-8", "", None):
        assert sent(client, body, kind).headers["x-seed"] == "7"


@pytest.mark.parametrize("body", [b"prompt=%ff", b"prompt=\xff", b"%ff=x", b"prompt=%ed%a0%80"])
def test_a_form_that_is_not_utf_8_is_refused(client: LocalClient, body: bytes) -> None:
    response = sent(client, body, "application/x-www-form-urlencoded")
    assert "malformed form" in check_error(response, 400, "invalid_value")["message"]


MULTIPART = "multipart/form-data; boundary=b"


def part(name: str, data: bytes, headers: bytes = b"") -> bytes:
    return b'--b\r\ncontent-disposition: form-data; name="%s"\r\n%s\r\n%s\r\n' % (name.encode(), headers, data)


PROMPT, SEED, END = part("prompt", b"x"), part("seed", b"9"), b"--b--"


@pytest.mark.parametrize(
    "body",
    [
        PROMPT + SEED + END,
        PROMPT + SEED + END + b"\r\n",
        PROMPT + SEED + END + b"\r\nan epilogue",
        b"a preamble\r\n" + PROMPT + SEED + END,
        PROMPT + part("seed", b"9", b"Content-Type: text/plain; charset=US-ASCII\r\n") + END,
    ],
    ids=["plain", "line break", "epilogue", "preamble", "charset"],
)
def test_every_legal_multipart_body_is_taken(client: LocalClient, body: bytes) -> None:
    response = sent(client, body, MULTIPART)
    assert response.status_code == 200, response.text
    assert response.headers["x-seed"] == "9"


def test_a_multipart_body_that_is_cut_short_anywhere_is_refused(client: LocalClient) -> None:
    body = PROMPT + SEED + END
    for length in range(len(body)):
        check_error(sent(client, body[:length], MULTIPART), 400, "invalid_value")


def submitted_prompt(client: LocalClient, data: bytes, headers: bytes) -> Any:
    body = part("prompt", data, headers) + END
    return client.post("/v1/videos", content=body, headers={"content-type": MULTIPART})


@pytest.mark.parametrize("charset", ["utf-8", "UTF-8", "iso-8859-1", '"windows-1252"'])
def test_a_text_part_is_read_in_its_own_charset(client: LocalClient, charset: str) -> None:
    encoded = "süß".encode(charset.strip('"'))
    response = submitted_prompt(client, encoded, f"Content-Type: text/plain; charset={charset}\r\n".encode())
    assert response.json()["prompt"] == "süß"


@pytest.mark.parametrize(
    ("data", "headers", "told"),
    [
        (b"x", b"Content-Type: text/plain; charset=zlib\r\n", "expected one of utf-8"),
        (b"x", b"Content-Type: text/plain; charset=\xff\r\n", "expected one of utf-8"),
        (b"eA==", b"Content-Transfer-Encoding: base64\r\n", "expected one of 7bit"),
        (b"\xff", b"", "malformed form"),
        ("é".encode(), b"Content-Type: text/plain; charset=us-ascii\r\n", "malformed form"),
    ],
)
def test_text_that_cannot_be_read_is_refused(client: LocalClient, data: bytes, headers: bytes, told: str) -> None:
    response = submitted_prompt(client, data, headers)
    assert told in check_error(response, 400, "invalid_value")["message"]


def test_a_compressed_body_is_refused_with_the_reason(client: LocalClient) -> None:
    response = sent(client, b"\x1f\x8b", **{"content-encoding": "gzip"})
    assert "content-encoding: got 'gzip'" in check_error(response, 400, "invalid_value")["message"]


# ---- the log


def lines(caplog: pytest.LogCaptureFixture) -> list[tuple[int, bool]]:
    return [(record.levelno, record.exc_info is not None) for record in caplog.records if record.name == "ray.serve"]


def test_a_fault_of_the_client_is_a_warning_in_one_line(client: LocalClient, caplog: pytest.LogCaptureFixture) -> None:
    client.get("/nothing")
    client.patch("/v1/videos")
    client.get("/v1/videos?limit=x")
    client.post("/v1/videos", json={"prompt": 1})
    client.get("/v1/videos/video_0")
    client.get("/v1/videos/a%0AERROR b%1b%F0%9F%98%80?a%0Ab=1")
    assert lines(caplog) == [(logging.WARNING, False)] * 6
    assert caplog.records[4].message.startswith("GET /v1/videos/video_0 404: video_id: got")
    assert all(record.message.isprintable() for record in caplog.records)


def test_a_fault_of_the_server_is_an_error_with_its_cause(
    client: LocalClient, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def lost(*_: Any) -> Any:
        raise DatabaseUnavailable("the job table cannot be reached") from OSError("disk I/O error")

    monkeypatch.setattr(client.service.videos, "list", lost)
    check_error(client.get("/v1/videos"), 503, "database_unavailable")
    monkeypatch.setattr(client.service, "model_cards", lambda: 1 / 0)
    check_error(client.get("/v1/models"), 500, "internal_error")
    assert lines(caplog) == [(logging.ERROR, True)] * 2
    assert "OSError: disk I/O error" in caplog.text
    assert "ZeroDivisionError" in caplog.text


def test_probes_leave_nothing_in_the_log(client: LocalClient, caplog: pytest.LogCaptureFixture) -> None:
    assert client.get("/health").status_code == 200
    client.service.unready = ["Denoiser"]
    error = check_error(client.get("/health"), 503, "not_ready")
    assert error["message"] == "not ready: Denoiser"
    assert client.head("/health").status_code == 503
    assert lines(caplog) == []


def test_a_server_that_is_stopping_refuses_videos_and_shows_those_that_it_has(
    client: LocalClient, caplog: pytest.LogCaptureFixture
) -> None:
    video_id = client.submit()
    assert client.service.drain() == 0
    error = check_error(client.post("/v1/videos", json={"prompt": "x"}), 503, "not_ready")
    assert error["message"] == "the server is stopping and takes no new requests; try again later"
    assert client.get(f"/v1/videos/{video_id}").json()["status"] == "queued"
    assert client.delete(f"/v1/videos/{video_id}").status_code == 200
    assert lines(caplog) == [(logging.WARNING, False), (logging.INFO, False)], "a refusal is no error"


def scope_of(path: str, method: str = "GET") -> dict[str, Any]:
    """A request as a web server hands it to an application."""
    scope: dict[str, Any] = {"type": "http", "method": method, "path": path, "headers": [], "root_path": ""}
    return scope | {"query_string": b"", "scheme": "http", "server": ("127.0.0.1", 1), "client": None}


def test_a_client_that_hangs_up_during_its_upload_is_no_error(
    client: LocalClient, caplog: pytest.LogCaptureFixture
) -> None:
    async def upload() -> None:
        messages = [
            {"type": "http.request", "body": b'{"prompt"', "more_body": True},
            {"type": "http.disconnect"},
        ]

        async def receive() -> dict[str, Any]:
            return messages.pop(0)

        async def send(message: Any) -> None:
            assert message.get("status", 400) == 400

        await client.app(scope_of("/v1/videos", "POST"), receive, send)

    client.call(upload)
    assert lines(caplog) == [(logging.WARNING, False)]
    assert "the client closed the connection" in caplog.text


# ---- limits, pages, the document


def test_streams_of_events_are_counted_before_they_start_and_released_whatever_happens(
    client: LocalClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events_module, "MAX_STREAMS", 2)
    path = f"/v1/videos/{client.submit()}/events"
    scope = scope_of(path)

    async def broken(*_: Any) -> AsyncIterator[None]:
        raise RuntimeError("broken")
        yield

    async def status(scope: dict[str, Any]) -> int:
        """The status of an answer; a stream is open from then on."""
        started = asyncio.get_running_loop().create_future()

        async def send(message: Any) -> None:
            if not started.done():
                started.set_result(message["status"])

        streams.append(asyncio.create_task(client.app(scope, asyncio.Event().wait, send)))
        return int(await started)

    async def close() -> None:
        for stream in streams:
            stream.cancel()
        await asyncio.wait(streams)
        streams.clear()

    async def scenario() -> None:
        for _ in range(3):
            assert [await status(scope) for _ in range(4)] == [200, 200, 429, 429]
            assert await status({**scope, "method": "HEAD"}) == 200
            await close()
        monkeypatch.setattr(client.service.videos, "events", broken)
        for _ in range(5):
            assert await status(scope) == 200
            with pytest.raises(BaseExceptionGroup, match="unhandled errors"):
                await streams.pop()

    streams: list[asyncio.Task[None]] = []
    client.call(scenario)


def test_a_silent_stream_is_kept_open(client: LocalClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fastapi.routing, "_PING_INTERVAL", 0.05)
    path, sent = f"/v1/videos/{client.submit()}/events", asyncio.Queue[Any]()

    async def listen() -> None:
        stream = asyncio.create_task(client.app(scope_of(path), asyncio.Event().wait, sent.put))
        while b"queued" not in (await sent.get()).get("body", b""):
            pass
        assert [(await sent.get())["body"] for _ in range(2)] == [b": ping\n\n"] * 2
        stream.cancel()
        await asyncio.wait([stream])

    client.call(listen)


def test_events_have_their_numbers_and_resume_after_the_last_one(client: LocalClient) -> None:
    path = f"/v1/videos/{finished(client)}/events"
    blocks = client.get(path).text.strip().split("\n\n")
    assert [block.split("\n")[-1].split(": ")[0] for block in blocks] == ["id"] * len(blocks)
    *_, before, _ = blocks
    last = before.split("id: ")[1]
    assert client.get(path, headers={"Last-Event-ID": last}).text.strip() == blocks[-1]


@pytest.mark.parametrize("order", ["desc", "asc"])
def test_pages_go_on_after_a_video_that_was_deleted(client: LocalClient, order: str) -> None:
    videos = [client.submit() for _ in range(7)]
    seen, query = [], {"limit": "2", "order": order}
    while (page := client.get("/v1/videos", params=query).json())["data"]:
        for video in page["data"]:
            seen.append(video["id"])
            client.delete(f"/v1/videos/{video['id']}")
        query["after"] = page["last_id"]
        assert page["has_more"] == (len(seen) < 7)
    assert seen == (videos if order == "asc" else videos[::-1])


def test_a_page_after_a_deleted_video_begins_where_that_one_stood(client: LocalClient) -> None:
    videos = [client.submit() for _ in range(4)]
    client.delete(f"/v1/videos/{videos[2]}")
    later = client.get("/v1/videos", params={"after": videos[2]}).json()["data"]
    assert [video["id"] for video in later] == [videos[1], videos[0]]
    for unknown in ("video_" + "ab" * 16, "video_0", "x"):
        check_error(client.get("/v1/videos", params={"after": unknown}), 404, "not_found")


def test_the_document_promises_what_can_come_and_nothing_else(client: LocalClient) -> None:
    document = client.get("/openapi.json").json()
    for path, operations in document["paths"].items():
        for operation in operations.values():
            assert "422" not in operation["responses"], path
            assert {"403", "421", "500"} <= set(operation["responses"]), path
    assert "ValidationError" not in json.dumps(document)


def test_data_is_the_owners_alone(tmp_path: Path) -> None:
    with local_client(tmp_path / "new" / "folder") as client:
        finished(client)
        root = tmp_path / "new"
        paths = [root, *root.rglob("*")]
        assert {path.suffix for path in paths} >= {".sqlite", ".sqlite-wal", ".sqlite-shm", ".mp4", ".jpg"}
        assert len(list(root.rglob("*.jpg"))) == len(OF_A_VIDEO) - 1
        for path in paths:
            assert path.stat().st_mode & 0o777 == (0o700 if path.is_dir() else 0o600), path


def test_an_older_table_is_closed_and_a_folder_of_others_is_left_but_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "data"
    folder.mkdir(mode=0o755)
    folder.chmod(0o755)
    (folder / "jobs.sqlite").touch()
    (folder / "jobs.sqlite").chmod(0o644)
    with local_client(tmp_path):
        assert (folder / "jobs.sqlite").stat().st_mode & 0o777 == 0o600
        assert folder.stat().st_mode & 0o777 == 0o755
    assert f"Other users can read {folder} (mode 755)" in caplog.text
