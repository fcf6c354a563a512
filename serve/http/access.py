"""Access to the API: keys, host names, and origins of web pages.

A browser sends whatever a web page asks it to send, to any address it can reach. A foreign page must neither submit
nor read, and a host name whose owner points it at this machine (DNS rebinding) must not make a foreign page look like
this server's own.
"""

import ipaddress
import re
from dataclasses import dataclass
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from serve.errors import HostNotAllowed, InvalidRequest, OriginNotAllowed, ServingError
from serve.http.answers import error_response

HOST_PATTERN = r"^(\*|(\*\.)?[a-z0-9_-]+(\.[a-z0-9_-]+)*)$"
ORIGIN_PATTERN = r"^(\*|[a-z][a-z0-9+.-]*://[a-z0-9._\[\]:-]+)$"

HOST = re.compile(r"(\[[0-9a-fA-F:.]+\]|[^\[\]:/?#@\s]+)(:[0-9]*)?")
OWN_HOSTS = ("localhost", "*.localhost")  # resolved without a DNS server
EXPOSED = (
    *("Accept-Ranges", "Allow", "Content-Disposition", "Content-Range", "ETag", "Retry-After", "X-Request-ID"),
    *("OpenAI-Poll-After-Ms", "X-Model", "X-Seed", "X-Inference-Time-S", "X-Stage-Durations"),
)


@dataclass(frozen=True)
class Access:
    """The settings of the same names in ``AppArgs``."""

    api_keys: tuple[str, ...] = ()
    api_keys_file: str | None = None
    allowed_hosts: tuple[str, ...] = ()
    allowed_origins: tuple[str, ...] = ()


OPEN = Access()


class Guard:
    """Refuses requests with a host name or from a web page that is not allowed.

    Every IP address is allowed as host, since nobody can point it elsewhere.
    """

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self._app = app
        self._hosts = OWN_HOSTS + access.allowed_hosts
        self._origins = access.allowed_origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            headers = Headers(scope=scope)
            for host in headers.getlist("host"):  # a request without one is not from a browser
                self._check_host(host)
            self._check_origin(headers)
        await self._app(scope, receive, send)

    def _check_host(self, host: str) -> None:
        if not (found := HOST.fullmatch(host)) or not _allowed(found[1].lower().removesuffix("."), self._hosts):
            expected = "an IP address, localhost or one of allowed_hosts in deploy.yaml"
            raise HostNotAllowed(
                f"Host: got {host[:80]!r}, expected {expected}, because any name can point to this server", "Host"
            )

    def _check_origin(self, headers: Headers) -> None:
        """Check the headers by which browsers name the requesting page; other clients do not send them."""
        origin, site = headers.get("origin"), headers.get("sec-fetch-site")
        if site in ("same-origin", "none") or (origin is None and site is None):
            return
        if origin is None:  # a link to this server, or an embedded file of a foreign page
            if headers.get("sec-fetch-mode") != "navigate":
                raise _foreign("no Origin", "embedding needs crossorigin=anonymous")
        elif not {"*", origin.lower()} & set(self._origins) and not _same_host(origin, headers.get("host", "")):
            raise _foreign(repr(origin[:80]), "a web page must not use a server that did not allow it")


class Cors(CORSMiddleware):
    """Tells browsers what allowed origins may do, and refuses other origins in the one error form."""

    def __init__(self, app: ASGIApp, access: Access) -> None:
        super().__init__(
            app,
            allow_origins=access.allowed_origins,
            allow_methods=("GET", "HEAD", "POST", "DELETE", "OPTIONS"),
            allow_headers=("*",),
            allow_private_network=True,
            expose_headers=EXPOSED,
        )

    def preflight_response(self, request_headers: Headers) -> Response:
        response = super().preflight_response(request_headers)
        if response.status_code == 200:
            return response
        origin = request_headers["origin"]
        error: ServingError = InvalidRequest(f"preflight: got a request that is not allowed, {response.body!r}")
        if not self.is_allowed_origin(origin):
            error = _foreign(repr(origin[:80]), "a web page must not use a server that did not allow it")
        return error_response(error, {"Vary": response.headers["vary"]})


def _allowed(name: str, patterns: tuple[str, ...]) -> bool:
    return _is_address(name) or any(
        pattern in ("*", name) or (pattern.startswith("*.") and name.endswith(pattern[1:])) for pattern in patterns
    )


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return False
    return True


def _same_host(origin: str, host: str) -> bool:
    """Whether the page is this server's own; the scheme may differ if a proxy in front of the server ends TLS."""
    try:
        return host != "" and urlsplit(origin).netloc.lower() == host.lower()
    except ValueError:
        return False


def _foreign(got: str, why: str) -> OriginNotAllowed:
    message = (
        f"Origin: got {got}, expected this server's own page or one of allowed_origins in deploy.yaml, because {why}"
    )
    return OriginNotAllowed(message, "Origin")
