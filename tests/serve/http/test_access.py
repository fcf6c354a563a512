"""What web pages of others can do with a server: nothing, unless it allows them."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from answers import check_error
from local_api import LocalClient, local_client
from pydantic import ValidationError

from serve.app import AppArgs
from serve.http.access import OPEN, Access

ALLOWED = Access(allowed_hosts=("videos.example.com", "*.internal"), allowed_origins=("https://app.example.com",))
OWN_NAMES = ["localhost", "localhost:8000", "127.0.0.1:8000", "[::1]:8000", "10.1.2.3", "[fe80::1]", "LOCALHOST."]
EVIL = "https://evil.example"


@pytest.fixture
def client(tmp_path: Path) -> Iterator[LocalClient]:
    with local_client(tmp_path) as opened:
        yield opened


@pytest.fixture
def allowing(tmp_path: Path) -> Iterator[LocalClient]:
    with local_client(tmp_path, ALLOWED) as opened:
        yield opened


@pytest.mark.parametrize("host", [*OWN_NAMES, "app.localhost"])
def test_addresses_and_localhost_are_answered(client: LocalClient, host: str) -> None:
    assert client.get("/v1/videos", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8000", "localhost.evil.example", "127.0.0.1.evil.example", "", "a b", "[x]"]
)
@pytest.mark.parametrize("path", ["/v1/videos", "/", "/health", "/nothing"])
def test_a_name_that_anybody_could_point_here_is_refused(client: LocalClient, host: str, path: str) -> None:
    error = check_error(client.get(path, headers={"Host": host}), 421, "host_not_allowed")
    assert "allowed_hosts" in error["message"]


@pytest.mark.parametrize(("host", "status"), [("videos.example.com:80", 200), ("a.b.internal", 200), ("internal", 421)])
def test_names_are_allowed_one_by_one_or_by_domain(allowing: LocalClient, host: str, status: int) -> None:
    assert allowing.get("/v1/models", headers={"Host": host}).status_code == status


def test_a_star_allows_every_name(tmp_path: Path) -> None:
    with local_client(tmp_path, Access(allowed_hosts=("*",))) as client:
        assert client.get("/v1/models", headers={"Host": "anything.example"}).status_code == 200


BROWSERS = {
    "a form": {"Origin": EVIL, "Content-Type": "application/x-www-form-urlencoded"},
    "fetch without CORS": {"Origin": EVIL, "Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"},
    "a sandboxed frame": {"Origin": "null"},
    "another port": {"Origin": "http://localhost:3000", "Sec-Fetch-Site": "same-site"},
    "a name pointed here": {"Origin": "http://evil.example", "Host": "evil.example"},
    "a picture or player": {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"},
}


@pytest.mark.parametrize("headers", BROWSERS.values(), ids=BROWSERS)
@pytest.mark.parametrize("access", [OPEN, ALLOWED], ids=["default", "others allowed"])
def test_a_foreign_page_neither_submits_nor_reads_nor_deletes(
    tmp_path: Path, access: Access, headers: dict[str, str]
) -> None:
    with local_client(tmp_path, access) as client:
        video = client.submit()
        for method, path in (("POST", "/v1/videos"), ("GET", "/v1/videos"), ("DELETE", f"/v1/videos/{video}")):
            response = client.request(method, path, headers=headers, content=b'{"prompt": "x"}')
            assert response.status_code in (403, 421), response.text
            assert response.json()["error"]["code"] in ("origin_not_allowed", "host_not_allowed")
            assert "access-control-allow-origin" not in response.headers
        assert [listed["id"] for listed in client.get("/v1/videos").json()["data"]] == [video]


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Origin": "http://localhost", "Sec-Fetch-Site": "same-origin"},
        {"Origin": "https://localhost"},
        {"Origin": "https://videos.example", "Sec-Fetch-Site": "same-origin", "Host": "10.0.0.7:8000"},
        {"Sec-Fetch-Site": "none", "Sec-Fetch-Mode": "navigate"},
        {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"},
    ],
    ids=["no browser", "own page", "own page over TLS", "own page behind a proxy", "typed", "a link"],
)
def test_the_own_page_links_and_programs_are_let_in(client: LocalClient, headers: dict[str, str]) -> None:
    assert client.get("/", headers=headers).status_code == 200
    assert client.post("/v1/videos", json={"prompt": "x"}, headers=headers).status_code == 200


def test_an_allowed_page_may_do_all_and_sees_errors_and_headers(allowing: LocalClient) -> None:
    origin = {"Origin": "https://app.example.com"}
    asked = {"Access-Control-Request-Method": "POST"}
    asked["Access-Control-Request-Headers"] = (
        "authorization, idempotency-key, content-type, last-event-id, x-stainless-os"
    )
    preflight = allowing.options("/v1/videos", headers=origin | asked)
    assert preflight.status_code == 200
    assert preflight.headers["access-control-allow-origin"] == origin["Origin"]
    assert preflight.headers["access-control-allow-headers"] == asked["Access-Control-Request-Headers"]
    answers = [
        allowing.post("/v1/videos", json={"prompt": "x"}, headers=origin),
        allowing.post("/v1/videos", json={"prompt": 1}, headers=origin),
        allowing.get("/nothing", headers=origin),
    ]
    assert [answer.status_code for answer in answers] == [200, 400, 404]
    for answer in answers:
        assert answer.headers["access-control-allow-origin"] == origin["Origin"]
        assert answer.headers["vary"] == "Origin"
        assert {"ETag", "Retry-After", "X-Request-ID"} <= set(
            answer.headers["access-control-expose-headers"].split(", ")
        )


def test_an_allowed_page_sees_that_its_key_is_wrong_and_that_the_server_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    access = Access(("0" * 16,), None, (), ("*",))
    with local_client(tmp_path, access) as client:
        refused = client.get("/v1/videos", headers={"Origin": EVIL})
        monkeypatch.setattr(client.service, "model_cards", lambda: 1 / 0)
        failed = client.get("/v1/models", headers={"Origin": EVIL, "Authorization": f"Bearer {'0' * 16}"})
    assert (refused.status_code, failed.status_code) == (401, 500)
    assert refused.headers["access-control-allow-origin"] == failed.headers["access-control-allow-origin"] == "*"


@pytest.mark.parametrize(
    ("origin", "method", "status"),
    [(EVIL, "POST", 403), ("https://app.example.com", "FOO", 400), ("https://app.example.com", "DELETE", 200)],
)
def test_a_preflight_is_refused_in_the_one_form(allowing: LocalClient, origin: str, method: str, status: int) -> None:
    headers = {"Origin": origin, "Access-Control-Request-Method": method}
    response = allowing.options("/v1/videos", headers=headers)
    if status == 200:
        assert response.status_code == 200
    else:
        check_error(response, status, "origin_not_allowed" if status == 403 else "invalid_value")


@pytest.mark.parametrize(
    "fields",
    [
        {"allowed_hosts": ("http://example.com",)},
        {"allowed_hosts": ("example.com:80",)},
        {"allowed_hosts": ("a.*.com",)},
        {"allowed_hosts": ("Example.com",)},
        {"allowed_origins": ("example.com",)},
        {"allowed_origins": ("https://example.com/",)},
        {"allowed_origins": ("null",)},
    ],
    ids=str,
)
def test_what_could_never_match_is_refused_in_deploy_yaml(fields: dict[str, tuple[str, ...]]) -> None:
    with pytest.raises(ValidationError):
        AppArgs(**fields)


def test_hosts_and_origins_reach_the_server_from_deploy_yaml() -> None:
    args = AppArgs(allowed_hosts=("*.internal",), allowed_origins=("https://app.example.com",), api_keys=("0" * 16,))
    assert args.access() == Access(("0" * 16,), None, ("*.internal",), ("https://app.example.com",))
