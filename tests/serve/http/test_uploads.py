"""Pictures and clips over HTTP: the forms in which they come, what is refused, and that nothing of it stays."""

import asyncio
import base64
import hashlib
import json
import logging
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import own_time
import pytest
from answers import check_error
from local_api import LocalClient, local_client
from sample_media import clip, picture

from cosmos3_models.checkpoint.folder import Checkpoint
from cosmos3_models.media import isolated, reading
from serve.errors import TimedOut
from serve.http import body as body_module
from serve.http.limits import MAX_BODY_BYTES
from serve.inputs import uploads as uploads_module
from serve.inputs.uploads import LOCK, PREFIX, UploadFolder

PNG, MP4 = picture(), clip()
OTHER = picture(seed=1)


@pytest.fixture
def client(tmp_path: Path) -> Iterator[LocalClient]:
    with local_client(tmp_path) as opened:
        yield opened
        assert temporary_files(opened) == [], "a request's files are removed with it"


@pytest.fixture
def read_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read pictures and clips in this process, where only the way in which they come is tested."""
    monkeypatch.setattr(isolated, "inspect", reading.inspect)


def temporary_files(client: LocalClient) -> list[str]:
    folder: Path = client.service.uploads._folder
    return [path.name for path in folder.iterdir() if path.name != LOCK]


def stored_inputs(tmp_path: Path) -> list[Path]:
    return [path for path in tmp_path.rglob("inputs/*") if path.is_file()]


def data_url(data: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def post(client: LocalClient, reference: Any, **fields: Any) -> httpx.Response:
    return client.post("/v1/videos", json={"prompt": "x", "input_reference": reference} | fields)


def in_chunks(body: bytes, size: int) -> Iterator[bytes]:
    for start in range(0, len(body), size):
        yield body[start : start + size]


# ---- the forms


def forms(data: bytes) -> list[dict[str, Any]]:
    """The arguments of a client for each form in which a picture can come."""
    url = data_url(data)
    return [
        {"data": {"prompt": "x"}, "files": {"input_reference": ("a.png", data)}},
        {"data": {"prompt": "x"}, "files": {"input_reference": ("nonsense.txt", data, "text/plain")}},
        {"files": {"prompt": (None, "x"), "input_reference[image_url]": (None, url)}},
        {"data": {"prompt": "x", "input_reference[image_url]": url}},
        {"json": {"prompt": "x", "input_reference": {"image_url": url}}},
        {"json": {"prompt": "x", "input_reference": {"video_url": url}}},  # its content tells that it is a picture
    ]


@pytest.mark.usefixtures("read_here")
@pytest.mark.parametrize("form", range(len(forms(PNG))))
@pytest.mark.parametrize(("data", "kind"), [(PNG, "image"), (MP4, "video")], ids=["picture", "clip"])
def test_every_form_stores_the_same_bytes(
    client: LocalClient, tmp_path: Path, form: int, data: bytes, kind: str
) -> None:
    response = client.post("/v1/videos", **forms(data)[form])
    assert response.status_code == 200, response.text
    (stored,) = stored_inputs(tmp_path)
    assert stored.read_bytes() == data
    assert stored.name.startswith(hashlib.sha256(data).hexdigest())
    job = client.call(client.service.videos.table.get, response.json()["id"])
    assert (job.input_reference.kind, job.input_reference.width, job.input_reference.height) == (kind, 64, 48)


@pytest.mark.usefixtures("read_here")
@pytest.mark.parametrize("size", [1, 2, 3, 5, 7, 64, 1000])
def test_a_body_in_pieces_of_any_length_is_the_same(client: LocalClient, tmp_path: Path, size: int) -> None:
    escaped = data_url(PNG).replace("/", "\\/").replace("+", "\\u002B")
    fields = {"prompt": 'a "x" \\', "input_reference": {"image_url": "URL"}, "seed": 7}
    json_body = json.dumps(fields).replace("URL", escaped)
    part = b'--b\r\nContent-Disposition: form-data; name="%s"%s\r\n\r\n%s\r\n'
    file = part % (b"input_reference", b'; filename="a"', PNG)
    url = part % (b"input_reference[image_url]", b"", data_url(PNG).encode())
    seed = part % (b"seed", b"", b"7") + part % (b"prompt", b"", b'a "x" \\') + b"--b--\r\n"
    bodies = [("application/json", json_body.encode())]
    bodies += [("multipart/form-data; boundary=b", body + seed) for body in (file, url)]
    for kind, body in bodies:
        response = client.post("/v1/videos", content=in_chunks(body, size), headers={"content-type": kind})
        assert response.status_code == 200, response.text
        assert (response.json()["seed"], response.json()["prompt"]) == (7, 'a "x" \\')
        (stored,) = stored_inputs(tmp_path)
        assert stored.read_bytes() == PNG
        client.delete(f"/v1/videos/{response.json()['id']}")


def test_json_without_a_picture_reaches_the_parser_unchanged() -> None:
    from serve.http.json_body import _Body

    texts = [b'{"a": "b\\', b'{"image_url": "da', b'{"image_url": "dat\\u00', b'"\\', b"\xff\xfe{\0", b'{"a": "\\x"}']
    for text in [*texts, b'{"image_url": "http://x", "video_url": 5, "a\\"b": ["\\u00e4"]}']:
        for size in (1, 2, 3, 100):
            body = _Body(None)  # type: ignore[arg-type]
            for chunk in in_chunks(text, size):
                body.feed(chunk)
            assert body.finish() == (text, None)


def test_the_size_of_a_video_follows_its_picture(client: LocalClient) -> None:
    defaults = client.get("/v1/models").json()["data"][0]["defaults"]
    wide = post(client, {"image_url": data_url(picture(320, 160))}).json()
    assert wide["width"] == 2 * wide["height"]
    assert wide["width"] * wide["height"] <= defaults["width"] * defaults["height"]
    chosen = post(client, {"image_url": data_url(picture(320, 160))}, size="64x96").json()
    assert chosen["size"] == "64x96"


def test_a_picture_decides_no_image_and_indexes_decide_nothing_without_a_picture(client: LocalClient) -> None:
    error = check_error(post(client, {"image_url": data_url(PNG)}, num_frames=1), 400, "invalid_value")
    assert (error["param"], "nothing to generate" in error["message"]) == ("num_frames", True)
    for fields in ({"num_frames": 9, "condition_frame_indexes_vision": [3]}, {"condition_frame_indexes_vision": "x"}):
        error = check_error(post(client, {"image_url": data_url(PNG)}, **fields), 400, "invalid_value")
        assert error["param"] == "condition_frame_indexes_vision"
    response = client.post("/v1/videos", json={"prompt": "x", "condition_frame_indexes_vision": [0]})
    assert "a picture or clip as well" in check_error(response, 400, "invalid_value")["message"]


def test_a_model_without_an_encoder_takes_no_picture(client: LocalClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Checkpoint, "has_video_encoder", False)
    error = check_error(post(client, {"image_url": data_url(PNG)}), 400, "invalid_value")
    assert (error["param"], "has no video encoder" in error["message"]) == ("input_reference", True)
    assert client.post("/v1/videos", json={"prompt": "x"}).status_code == 200


# ---- idempotency


def test_a_repeated_upload_is_the_same_request_and_another_picture_is_not(client: LocalClient, tmp_path: Path) -> None:
    def send(data: bytes, form: int) -> httpx.Response:
        return client.post("/v1/videos", headers={"Idempotency-Key": "k"}, **forms(data)[form])

    ids = {send(PNG, form).json()["id"] for form in range(len(forms(PNG)))}
    assert len(ids) == 1, "the boundary, the name and the form do not count"
    check_error(send(OTHER, 0), 409, "idempotency_key_reused")
    check_error(
        client.post("/v1/videos", json={"prompt": "x"}, headers={"Idempotency-Key": "k"}), 409, "idempotency_key_reused"
    )
    assert [path.read_bytes() for path in stored_inputs(tmp_path)] == [PNG]


# ---- refusals

URL = "data:image/png;base64,"
BAD = {
    "http": {"image_url": "https://example.com/a.png"},
    "a file": {"image_url": "file:///etc/passwd"},
    "a path": {"image_url": "/etc/passwd"},
    "text": "a.png",
    "a list": [data_url(PNG)],
    "nothing": {},
    "both": {"image_url": data_url(PNG), "video_url": data_url(MP4)},
    "both, one short": {"image_url": data_url(PNG), "file_id": "video_0"},
    "another field": {"url": data_url(PNG)},
    "a number": {"file_id": 5},
    "an unknown video": {"file_id": "video_" + "0" * 32},
    "no id": {"file_id": "../../etc/passwd"},
    "no base64": {"image_url": URL + "%%%%"},
    "spaces": {"image_url": URL + "iVBO Rw0K"},
    "url-safe base64": {"image_url": URL + "-_-_"},
    "too short": {"image_url": data_url(PNG)[:-1]},
    "text after the end": {"image_url": URL + "QQ==QUFB"},
    "no marker": {"image_url": "data:image/png,abc"},
    "no comma": {"image_url": "data:image/png;base64"},
    "a long type": {"image_url": "data:" + "x" * 400},
    "empty": {"image_url": URL},
    "no picture": {"image_url": data_url(b"hello")},
    "half a picture": {"image_url": data_url(PNG[: len(PNG) // 2])},
}


@pytest.mark.parametrize("reference", BAD.values(), ids=BAD.keys())
def test_a_bad_reference_is_refused_by_name_and_stored_nowhere(
    client: LocalClient, tmp_path: Path, reference: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    error = check_error(post(client, reference), 400, "invalid_value")
    assert error["param"] == "input_reference"
    assert error["message"].startswith("input_reference: got ")
    assert "expected" in error["message"]
    assert stored_inputs(tmp_path) == []
    assert client.get("/v1/videos").json()["data"] == []


@pytest.mark.parametrize("reference", [{"image_url": "https://example.com/a.png"}, "https://example.com/a.png"])
def test_what_takes_no_url_shows_the_form_that_it_takes(client: LocalClient, reference: Any) -> None:
    message = post(client, reference).json()["error"]["message"]
    assert '{"image_url": "data:image/png;base64,..."}' in message
    assert "opens no URL" in message


@pytest.mark.parametrize(
    "form",
    [
        {"data": {"prompt": "x"}, "files": [("input_reference", PNG), ("input_reference", PNG)]},
        {"data": {"prompt": "x", "input_reference[video_url]": data_url(MP4)}, "files": {"input_reference": PNG}},
        {"data": {"prompt": "x"}, "files": {"input_reference": b""}},
        {"data": {"prompt": "x"}, "files": {"input_reference": b"hello"}},
        {"data": {"prompt": "x", "input_reference": "a.png"}},
    ],
    ids=["twice", "two forms", "empty", "no picture", "text"],
)
def test_a_bad_form_is_refused_by_name(client: LocalClient, tmp_path: Path, form: dict[str, Any]) -> None:
    error = check_error(client.post("/v1/videos", **form), 400, "invalid_value")
    assert str(error["param"]).startswith("input_reference")
    assert stored_inputs(tmp_path) == []


def test_a_file_in_another_field_is_refused(client: LocalClient) -> None:
    form: dict[str, Any] = {"data": {"prompt": "x"}, "files": {"negative_prompt": PNG}}
    assert check_error(client.post("/v1/videos", **form), 400, "invalid_value")["param"] == "negative_prompt"


def test_a_data_url_in_another_field_is_refused(client: LocalClient) -> None:
    for fields in ({"metadata": {"image_url": data_url(PNG)}}, {"image_url": data_url(PNG)}):
        response = client.post("/v1/videos", json={"prompt": "x"} | fields)
        assert check_error(response, 400, "invalid_value")["param"] == "input_reference"


def test_a_clip_that_is_too_long_is_refused_before_all_of_it_is_written(
    client: LocalClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploads_module, "MAX_UPLOAD_BYTES", 3000)
    for form in forms(bytes(3001)):
        assert check_error(client.post("/v1/videos", **form), 413, "too_large")["param"] == "input_reference"


def test_the_other_fields_of_an_upload_keep_their_limit(client: LocalClient) -> None:
    long = "x" * (MAX_BODY_BYTES + 1)
    form: dict[str, Any] = {"data": {"prompt": long}, "files": {"input_reference": PNG}}
    assert check_error(client.post("/v1/videos", **form), 413, "too_large")["param"] is None
    reference = {"image_url": data_url(PNG)}
    assert check_error(post(client, reference, negative_prompt=long), 413, "too_large")["param"] is None


def test_an_upload_that_breaks_off_leaves_nothing(client: LocalClient, tmp_path: Path) -> None:
    body = json.dumps({"input_reference": {"image_url": data_url(PNG)}, "prompt": "x"}).encode()
    for length in range(0, len(body), 997):
        response = client.post("/v1/videos", content=body[:length], headers={"content-type": "application/json"})
        check_error(response, 400, "invalid_value")
    assert stored_inputs(tmp_path) == []


async def chunks_after(pauses_s: Sequence[float], chunk: bytes) -> AsyncIterator[bytes]:
    for pause_s in pauses_s:
        await asyncio.sleep(pause_s)
        yield chunk


@pytest.mark.parametrize(
    ("pauses_s", "chunk", "arrives"),
    [
        ([0.2] * 4, bytes(body_module.PROGRESS_BYTES), True),
        ([0.0, 60.0], bytes(body_module.PROGRESS_BYTES), False),
        ([0.0, 60.0], b"x", False),
        ([0.2] * 4, b"x", False),  # drops on which a body could live for ever
    ],
)
def test_a_body_must_make_progress(
    monkeypatch: pytest.MonkeyPatch, pauses_s: list[float], chunk: bytes, arrives: bool
) -> None:
    clock = SimpleNamespace(monotonic=lambda: asyncio.get_running_loop().time())
    monkeypatch.setattr(body_module, "time", clock)

    async def read() -> int:
        return len([chunk async for chunk in body_module._arriving(chunks_after(pauses_s, chunk))])

    monkeypatch.setattr(body_module, "MAX_WAIT_S", 0.5)
    if arrives:
        assert own_time.run(read()) == len(pauses_s)
    else:
        with pytest.raises(TimedOut, match="got less than 65536 bytes"):
            own_time.run(read())


def test_a_stalled_upload_is_answered_and_leaves_nothing(client: LocalClient, monkeypatch: pytest.MonkeyPatch) -> None:
    part = b'--b\r\nContent-Disposition: form-data; name="input_reference"; filename="a"\r\n\r\n' + bytes(1 << 19)
    chunks = iter([part])
    answer: list[Any] = []

    async def receive() -> dict[str, Any]:
        for chunk in chunks:
            return {"type": "http.request", "body": chunk, "more_body": True}
        assert temporary_files(client) != []
        await asyncio.sleep(60)
        raise AssertionError

    async def send(message: Any) -> None:
        answer.append(message)

    headers = [(b"host", b"localhost"), (b"content-type", b"multipart/form-data; boundary=b")]
    scope = {"type": "http", "method": "POST", "path": "/v1/videos", "query_string": b"", "headers": headers}
    monkeypatch.setattr(body_module, "MAX_WAIT_S", 0.5)
    client.call(client.app, scope, receive, send)
    start, body = answer
    check_error(httpx.Response(start["status"], headers=start["headers"], content=body["body"]), 408, "timed_out")


# ---- the folder of temporary files


def test_the_folder_of_a_process_that_was_killed_is_removed_by_the_next_one(tmp_path: Path) -> None:
    living = UploadFolder(tmp_path)
    dead = tmp_path / f"{PREFIX}dead"
    dead.mkdir()
    (dead / LOCK).touch()
    (dead / "0123").write_bytes(b"x")
    young = tmp_path / "tmpyoung"  # which has no lock yet
    young.mkdir()
    other = UploadFolder(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted([living._folder, other._folder, young])
    living.close()
    assert not living._folder.exists()
    folder = other._folder
    del other
    assert not folder.exists()
