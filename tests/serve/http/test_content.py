"""The file of a video over HTTP, as RFC 9110 says, from a folder and from an object store."""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from answers import check_error
from fakes import OF_A_VIDEO, OF_AN_IMAGE
from local_api import MP4, LocalClient, local_client

from serve.graph.artifacts import EXTENSIONS, MEDIA_TYPES, ArtifactName
from serve.jobs import media_store as storage

VIDEO = MP4 + b"video"  # as ``finish`` writes it
LENGTH = len(VIDEO)
LONG_AGO, FAR_OFF = "Thu, 01 Jan 1970 00:00:00 GMT", "Fri, 01 Jan 2100 00:00:00 GMT"


@pytest.fixture(params=["folder", "object store"])
def client(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[LocalClient]:
    media = None if request.param == "folder" else f"memory://{tmp_path.name}"
    with local_client(tmp_path, media_url=media) as opened:
        opened.submit()
        opened.video = opened.call(opened.service.finish)  # type: ignore[attr-defined]
        yield opened


def get(client: LocalClient, method: str = "GET", **headers: str) -> Any:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return client.request(method, f"/v1/videos/{client.video}/content", headers=named)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("asked", "start", "end"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=100-199", 100, 200),
        ("bytes=100-", 100, LENGTH),
        ("bytes=-5", LENGTH - 5, LENGTH),
        (f"bytes=0-{LENGTH * 9}", 0, LENGTH),
        (f"bytes=-{LENGTH * 9}", 0, LENGTH),
        ("BYTES = 7-9", 7, 10),
        ("bytes=" + "0" * 30 + "-" + "9" * 5000, 0, LENGTH),
    ],
    ids=lambda value: str(value)[:20],
)
def test_a_range_is_that_part(client: LocalClient, asked: str, start: int, end: int) -> None:
    response = get(client, range=asked)
    if asked.startswith("bytes=00"):  # so many digits are no place in a file
        check_error(response, 416, "range_not_satisfiable")
        return
    assert (response.status_code, response.content) == (206, VIDEO[start:end])
    assert response.headers["content-range"] == f"bytes {start}-{end - 1}/{LENGTH}"
    assert response.headers["content-length"] == str(end - start)


@pytest.mark.parametrize(
    "asked", ["bytes=abc", "items=0-1", "bytes=5-2", "bytes=-", "bytes=0-1,5-6", "bytes 0-1", "", "="]
)
def test_a_range_that_is_not_understood_is_ignored(client: LocalClient, asked: str) -> None:
    response = get(client, range=asked)
    assert (response.status_code, response.content) == (200, VIDEO)
    assert response.headers["accept-ranges"] == "bytes"


@pytest.mark.parametrize(
    "asked", [f"bytes={LENGTH}-", "bytes=-0", f"bytes={'9' * 5000}-"], ids=lambda value: value[:12]
)
def test_a_range_outside_the_file_is_refused_with_its_length(client: LocalClient, asked: str) -> None:
    response = get(client, range=asked)
    check_error(response, 416, "range_not_satisfiable")
    assert response.headers["content-range"] == f"bytes */{LENGTH}"


def test_a_client_that_has_the_file_is_not_sent_it_again(client: LocalClient) -> None:
    first = get(client)
    tag, modified = first.headers["etag"], first.headers["last-modified"]
    assert tag == get(client).headers["etag"]
    assert not tag.startswith("W/")
    same = [{"if_none_match": tag}, {"if_none_match": f'"x", W/{tag}'}, {"if_none_match": "*"}]
    same += [{"if_modified_since": modified}, {"if_modified_since": FAR_OFF}]
    for headers in same:
        response = get(client, **headers)
        assert (response.status_code, response.content) == (304, b"")
        assert response.headers["etag"] == tag
        assert get(client, "HEAD", **headers).status_code == 304
    other = [{"if_none_match": '"x"'}, {"if_modified_since": LONG_AGO}, {"if_modified_since": "yesterday"}]
    other += [{"if_none_match": '"x"', "if_modified_since": FAR_OFF}, {"if_none_match": ""}]
    assert [get(client, **headers).status_code for headers in other] == [200] * 5


def test_each_variant_has_a_tag_of_its_own(client: LocalClient) -> None:
    url = f"/v1/videos/{client.video}/content"  # type: ignore[attr-defined]
    tags = {client.get(url, params={"variant": name}).headers["etag"] for name in ("video", "thumbnail", "spritesheet")}
    assert len(tags) == 3


@pytest.mark.parametrize(("names", "main"), [(OF_A_VIDEO, "video"), (OF_AN_IMAGE, "image")], ids=["video", "image"])
def test_without_a_variant_the_content_is_what_the_request_was_for(
    client: LocalClient, names: tuple[ArtifactName, ...], main: ArtifactName
) -> None:
    client.submit()
    url = f"/v1/videos/{client.call(client.service.finish, names)}/content"
    named, default = client.get(url, params={"variant": main}), client.get(url)
    assert default.content == named.content == MP4 + main.encode()
    assert default.headers["content-type"] == named.headers["content-type"] == MEDIA_TYPES[main]
    assert default.headers["content-disposition"].endswith(EXTENSIONS[MEDIA_TYPES[main]] + '"')
    (other,) = {"video", "image"} - {main}
    error = check_error(client.get(url, params={"variant": other}), 404, "not_found")
    assert error["message"] == f"this video has no {other}"


def test_a_download_is_resumed_only_if_the_file_is_the_same(client: LocalClient) -> None:
    first = get(client)
    for same in (first.headers["etag"], first.headers["last-modified"]):
        assert get(client, range="bytes=5-", if_range=same).status_code == 206
    for other in ('"x"', f"W/{first.headers['etag']}", LONG_AGO, "nonsense"):
        response = get(client, range="bytes=5-", if_range=other)
        assert (response.status_code, response.content) == (200, VIDEO)


def test_preconditions_are_kept(client: LocalClient) -> None:
    tag = get(client).headers["etag"]
    assert [get(client, if_match=given).status_code for given in (tag, "*", f'"x", {tag}')] == [200, 200, 200]
    assert get(client, if_unmodified_since=FAR_OFF).status_code == 200
    for headers in ({"if_match": '"x"'}, {"if_match": f"W/{tag}"}, {"if_unmodified_since": LONG_AGO}):
        check_error(get(client, **headers), 412, "precondition_failed")


def test_head_says_what_get_would_and_ignores_ranges(client: LocalClient) -> None:
    whole = get(client)
    for headers in ({}, {"range": "bytes=0-1"}, {"range": "bytes=99999-"}):
        head = get(client, "HEAD", **headers)
        assert (head.status_code, head.content) == (200, b"")
        assert head.headers == whole.headers


def test_a_range_of_an_object_is_read_in_blocks_without_a_copy(
    client: LocalClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "BLOCK_BYTES", 1000)
    monkeypatch.setattr(tempfile, "mkstemp", lambda *_, **__: pytest.fail("a copy"))
    store = client.service.videos._media
    read, asked = store._files._fs.cat_file, []

    def cat_file(path: str, start: int, end: int) -> bytes:
        asked.append((start, end))
        data: bytes = read(path, start=start, end=end)
        return data

    monkeypatch.setattr(store._files._fs, "cat_file", cat_file)
    assert get(client, range="bytes=500-2199").content == VIDEO[500:2200]
    assert asked == [(500, 1500), (1500, 2200)]
    asked.clear()
    assert get(client).content == VIDEO
    assert asked == [(0, 1000), (1000, 2000), (2000, LENGTH)]
    asked.clear()
    get(client, "HEAD")
    get(client, range="bytes=99999-")
    assert asked == []


def remove(client: LocalClient) -> None:
    store = client.service.videos._media
    store._files._fs.rm(store._files._root, recursive=True)


def test_a_file_that_is_gone_is_not_found(client: LocalClient) -> None:
    remove(client)
    for method in ("GET", "HEAD"):
        response = get(client, method)
        assert response.status_code == 404
    assert "gone" in check_error(get(client), 404, "not_found")["message"]


def test_a_file_that_vanishes_after_the_look_is_not_found_either(
    client: LocalClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = client.service.videos._media

    async def size(_: str) -> int:
        remove(client)
        return LENGTH

    monkeypatch.setattr(store, "size", size)
    assert "no longer exists" in check_error(get(client), 404, "not_found")["message"]


def test_a_store_that_refuses_is_unavailable(client: LocalClient, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise PermissionError("/secret")

    for method in ("cat_file", "info"):
        monkeypatch.setattr(client.service.videos._media._files._fs, method, refuse)
        response = get(client)
        assert "secret" not in check_error(response, 503, "media_unavailable")["message"]
        assert response.headers["retry-after"] == "5"


def test_the_tag_is_the_same_on_another_replica(tmp_path: Path) -> None:
    tags = []
    for turn in range(2):
        with local_client(tmp_path) as client:
            if turn == 0:
                client.submit()
                video = client.call(client.service.finish)
            tags.append(client.get(f"/v1/videos/{video}/content").headers["etag"])
    assert tags[0] == tags[1]
