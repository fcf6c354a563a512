"""Any HTTP request as bytes, drawn by Hypothesis, and the form of every answer.

What a message must be for an HTTP server to pass it on still holds: header names are tokens, and no header value has a
line break in it.
"""

import json
from typing import NamedTuple
from urllib.parse import quote

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from serve.schema import VideoRequest

KEY = "0123456789abcdef"
METHODS = [
    *["GET"] * 6,
    "HEAD",
    "HEAD",
    "POST",
    "PUT",
    "PATCH",
    "DELETE",
    "OPTIONS",
    "TRACE",
    "CONNECT",
    "PROPFIND",
    "get",
]
VIDEO = "VIDEO"  # in a path: the id of a finished video
FUZZED = settings(deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))


class Raw(NamedTuple):
    """A request as bytes."""

    method: str
    target: bytes
    headers: list[tuple[bytes, bytes]]
    body: list[bytes]
    complete: bool = True

    def __repr__(self) -> str:
        return " ".join(repr(part)[:400] for part in self)


def one_of_bytes(*some: bytes, others: SearchStrategy[bytes]) -> SearchStrategy[bytes]:
    return st.one_of(st.sampled_from(some), others)


visible = st.binary(max_size=30).map(lambda data: bytes(byte for byte in data if byte not in b"\r\n\0"))
text = st.text(max_size=12)
escaped = text.map(lambda value: quote(value, safe="", errors="surrogatepass").encode())
segment = one_of_bytes(b"%00", b"%ff", b"%", b"%zz", b"..%2f..", b"x" * 3000, b"%ed%a0%80", b"~", others=escaped)
video_path = st.sampled_from([b"", b"/content", b"/events", b"/"]).flatmap(
    lambda end: st.one_of(st.just(VIDEO.encode()), segment).map(lambda name: b"/v1/videos/" + name + end)
)
fixed_path = st.sampled_from(
    [
        b"/",
        b"/health",
        b"/docs",
        b"/docs/swagger-ui.css",
        b"/openapi.json",
        b"/v1/models",
        b"/v1/models/x",
        b"/v1",
        b"/v1/videos",
        b"/v1/videos/",
        b"/v1/videos/sync",
        b"/v1/videos/estimate",
        b"//",
        b"/v1//videos",
        b"*",
        b"/v1/videos/../../etc",
    ]
)
path = st.one_of(fixed_path, video_path, segment.map(lambda name: b"/" + name))

query_name = one_of_bytes(
    *(b"limit", b"after", b"order", b"variant", b"self", b"", b"limit%00", b"status", b"created_after"),
    *(b"created_before", b"metadata", b"metadata[]", b"metadata[x]", b"metadata%5By.1%5D", b"metadata[[x]]"),
    others=escaped,
)
query_value = one_of_bytes(
    *(b"1", b"20", b"0", b"-1", b"1_0", b"+5", b"%205", b"9" * 5000, b"1e3", b"NaN", b"asc", b"desc", b"video"),
    *(b"thumbnail", b"\xff", b"%ff", b"video_000000000001" + b"0" * 20, b"video_ffffffffffff" + b"0" * 20),
    *(b"queued", b"completed", b"1700000000"),
    others=escaped,
)
query = st.lists(st.tuples(query_name, query_value), max_size=3).map(
    lambda pairs: b"&".join(name + b"=" + value for name, value in pairs)
)
target = st.tuples(path, query).map(lambda parts: b"?".join(filter(None, parts)))

HEADERS: dict[bytes, tuple[bytes, ...]] = {
    b"range": (
        b"bytes=0-",
        b"bytes=5-9",
        b"bytes=-1",
        b"bytes=-0",
        b"bytes=9-5",
        b"bytes=99999-",
        b"bytes=abc",
        b"items=0-1",
        b"bytes=0-1,5-9",
        b"bytes=" + b"9" * 5000 + b"-",
        b"bytes=-" + b"9" * 5000,
        b"bytes=\xb2-\xb3",
    ),
    b"if-range": (b'"x"', b'W/"x"', b"Fri, 27 Nov 2026 15:41:11 GMT", b"nonsense"),
    b"if-match": (b"*", b'"x"', b'"', b"x, y"),
    b"if-none-match": (b"*", b'W/"x"', b'"', b""),
    b"if-modified-since": (b"Fri, 27 Nov 2026 15:41:11 GMT", b"Fri, 31 Feb 99999 99:99:99 GMT", b"0", b"-1"),
    b"if-unmodified-since": (b"Fri, 27 Nov 1970 15:41:11 GMT", b"Mon, 01 Jan 0001 00:00:00 +2359", b"x"),
    b"last-event-id": (b"0", b"-1", b"9" * 5000, b"1_0", b"abc", b"\xff", b"", b"1.5"),
    b"idempotency-key": (b"a", b"", b"x" * 300, b"\xff", b"\xc3\xa9", b"\t"),
    b"x-request-id": (b"a", b"", b"x" * 3000, b"\xff", b"\x1b[31m"),
    b"host": (
        b"localhost",
        b"127.0.0.1:8000",
        b"[::1]:8000",
        b"[::1",
        b"evil.com",
        b"a.example.com",
        b"",
        b"\xff",
        b"user@localhost",
        b"localhost:99999999999",
        b"[fe80::1%25eth0]",
    ),
    b"origin": (b"https://example.com", b"http://localhost", b"null", b"https://evil.com", b"", b"\xff", b"http://["),
    b"sec-fetch-site": (b"same-origin", b"cross-site", b"none", b"x"),
    b"sec-fetch-mode": (b"navigate", b"no-cors"),
    b"access-control-request-method": (b"POST", b"FOO", b"\xff"),
    b"access-control-request-headers": (b"authorization", b"x-\xff", b",,,"),
    b"authorization": (
        b"Bearer " + KEY.encode(),
        b"Bearer",
        b"Bearer \xff",
        b"Basic eA==",
        b"",
        b"Bearer " + b"x" * 999,
    ),
    b"content-length": (b"5", b"-1", b"abc", b"9" * 5000, b"99999999", b"\xb2"),
    b"content-encoding": (b"gzip", b"identity"),
    b"accept": (b"text/html", b"\xff"),
    b"expect": (b"100-continue",),
    b"cookie": (b"\xff",),
}
header = st.sampled_from(sorted(HEADERS)).flatmap(
    lambda name: st.tuples(st.just(name), one_of_bytes(*HEADERS[name], others=visible))
)
headers = st.lists(header, max_size=4)

FIELDS = (*VideoRequest.model_fields, "self", "cls", "fields", "given", "__class__", "model_config", "input_reference")
name = st.one_of(st.sampled_from(FIELDS), st.sampled_from(["", "\ud800", "prompt\0", "size\n", "x" * 999]), text)
plain = [
    *("x", "", " ", "\0", "\ud800", "1_000", " 5 ", "٣", "5", "32x32", "٣x٣", "1e400", "nan", "true", "flow"),
    1,
    0,
]
number = st.one_of(st.integers(), st.floats(), st.sampled_from([True, None, 10**300, -1, 4, 2.5, 16, 32, 4096]))
scalar = st.one_of(st.sampled_from(plain), text, number)
value = st.recursive(scalar, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3))
RAW_JSON = [
    "9" * 5000,
    "-" + "9" * 4299,
    "1e999999",
    "NaN",
    "-Infinity",
    "[" * 900 + "]" * 900,
    '{"a":' * 900 + "1" + "}" * 900,
]
raw_value = st.one_of(value.map(json.dumps), value.map(json.dumps), st.sampled_from(RAW_JSON))
pairs = st.lists(st.tuples(name, raw_value), max_size=4).map(lambda some: [("prompt", '"x"'), *some])
json_body = pairs.map(lambda some: "{" + ",".join(f"{json.dumps(name)}:{value}" for name, value in some) + "}").map(
    lambda document: document.encode()
)
form_value = st.one_of(st.sampled_from([item for item in plain if isinstance(item, str)]), text)
form_pairs = st.lists(st.tuples(name, form_value), max_size=3).map(lambda some: [("prompt", "x"), *some])
form_body = form_pairs.map(
    lambda some: "&".join(
        f"{quote(name, errors='surrogatepass')}={quote(value, errors='surrogatepass')}" for name, value in some
    )
).map(lambda form: form.encode())
PART_HEADERS = ["", "content-type: text/plain; charset=latin-1\r\n", "content-type: text/plain; charset=\xff\r\n"]
PART_HEADERS += [
    "content-type: a; charset=zlib\r\n",
    "content-transfer-encoding: base64\r\n",
    "content-type\r\n",
    ": x\r\n",
]
DISPOSITIONS = [
    'form-data; name="{}"',
    "form-data; name={}",
    'form-data; filename="{}"',
    "{}",
    'form-data; name="{}"; filename=x',
]
ENDS = ["--b--", "--b--\r\n", "--b--\r\nepilogue", "", "--b", "--b\r\n"]


@st.composite
def multipart_body(draw: st.DrawFn) -> bytes:
    parts = [
        f"--b\r\ncontent-disposition: {draw(st.sampled_from(DISPOSITIONS)).format(field)}\r\n"
        f"{draw(st.sampled_from(PART_HEADERS))}\r\n{value}\r\n"
        for field, value in draw(form_pairs)
    ]
    return ("".join(parts) + draw(st.sampled_from(ENDS))).encode(draw(st.sampled_from(["utf-8", "utf-16"])), "replace")


typed_body: SearchStrategy[tuple[bytes, bytes]] = st.one_of(
    st.tuples(st.sampled_from([b"application/json", b"", b"application/x-www-form-urlencoded"]), json_body),
    st.tuples(st.just(b"application/x-www-form-urlencoded"), form_body),
    st.tuples(st.just(b"multipart/form-data; boundary=b"), multipart_body()),
    st.tuples(
        one_of_bytes(
            *(
                b"application/json; charset=\xff",
                b"multipart/form-data",
                b"multipart/form-data; boundary=",
                b"text/plain",
            ),
            *(b"multipart/form-data; boundary=" + b"x" * 999, b"multipart/form-data; boundary=\xff", b";;;", b"\xff"),
            others=visible,
        ),
        st.one_of(
            st.binary(max_size=60), json_body, st.sampled_from([b"[" * 100_000, b"\xff\xfe{\0", b"{}" * 600_000])
        ),
    ),
)


@st.composite
def any_request(draw: st.DrawFn) -> Raw:
    """Any method of any route, with any headers and query, and now and then a body."""
    kind, body = draw(st.one_of(st.just((b"", b"")), typed_body))
    given = draw(headers) + ([(b"content-type", kind)] if kind else [])
    return Raw(draw(st.sampled_from(METHODS)), draw(target), authorized(draw, given), [body])


@st.composite
def any_video(draw: st.DrawFn) -> Raw:
    """A request for a video, its body in as many pieces as may be, now and then broken off."""
    kind, body = draw(typed_body)
    cut = draw(st.integers(0, len(body)))
    given = [(b"content-type", kind), *draw(st.lists(header, max_size=1))]
    route = draw(st.sampled_from([b"/v1/videos", b"/v1/videos/sync", b"/v1/videos/estimate"]))
    complete = draw(st.integers(0, 9)) != 9
    return Raw("POST", route, authorized(draw, given), [body[:cut], body[cut:]], complete)


def authorized(draw: st.DrawFn, given: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """With a key in most cases, so that most requests come in."""
    return [(b"authorization", b"Bearer " + KEY.encode()), *given] if draw(st.integers(0, 19)) != 19 else given


def check_form(method: str, status: int, content_type: str | None, body: bytes) -> None:
    """The answer is none of the server's faults, and in the one form if it is an error."""
    assert status < 500, body
    if method == "HEAD":
        assert body == b""
    if status >= 400:
        assert content_type == "application/json", body
        if method != "HEAD":
            assert set(json.loads(body)["error"]) == {"message", "type", "param", "code"}
            assert body.isascii()
