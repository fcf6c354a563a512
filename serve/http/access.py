"""Who may use the API: clients with a key, under which host names, from web pages of which origins.

A browser sends what any web page asks it to, to any address that it reaches. A foreign page must neither submit nor
read, and a name that its owner points at this machine (DNS rebinding) must not make its page look like ours.
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
OWN_HOSTS = ("localhost", "*.localhost")  # no DNS server is asked for these
EXPOSED = (
    *("Accept-Ranges", "Allow", "Content-Disposition", "Content-Range", "ETag", "Retry-After", "X-Request-ID"),
    *("OpenAI-Poll-After-Ms", "X-Model", "X-Seed", "X-Inference-Time-S", "X-Stage-Durations"),
)


@dataclass(frozen=True)
class Access:
    """See ``AppArgs``."""

    api_keys: tuple[str, ...] = ()
    api_keys_file: str | None = None
    allowed_hosts: tuple[str, ...] = ()
    allowed_origins: tuple[str, ...] = ()


OPEN = Access()


class Guard:
    """Refuses requests under a host name, or from a web page, that nobody allowed.

    An address is no name that can be pointed elsewhere, so every address is allowed as host.
    """

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self._app = app
        self._hosts = OWN_HOSTS + access.allowed_hosts
        self._origins = access.allowed_origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            headers = Headers(scope=scope)
            for host in headers.getlist("host"):  # without one it is no browser
                self._check_host(host)
            self._check_origin(headers)
        await self._app(scope, receive, send)

    def _check_host(self, host: str) -> None:
        if not (found := HOST.fullmatch(host)) or not _allowed(found[1].lower().removesuffix("."), self._hosts):
            told = "an IP address, localhost or one of allowed_hosts in deploy.yaml"
            raise HostNotAllowed(f"Host: got {host[:80]!r}, expected {told}, because any name may point here", "Host")

    def _check_origin(self, headers: Headers) -> None:
        """Compare what browsers say of the page that sends a request; what they do not say is no browser."""
        origin, site = headers.get("origin"), headers.get("sec-fetch-site")
        if site in ("same-origin", "none") or (origin is None and site is None):
            return
        if origin is None:  # a link to this server, or something that a foreign page embeds
            if headers.get("sec-fetch-mode") != "navigate":
                raise _foreign("no Origin", "embedding needs crossorigin=anonymous")
        elif not {"*", origin.lower()} & set(self._origins) and not _same_host(origin, headers.get("host", "")):
            raise _foreign(repr(origin[:80]), "a web page must not use a server that did not allow it")


class Cors(CORSMiddleware):
    """Tells browsers what allowed origins may do; refuses others in the one form."""

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
    """Whether the page is this server's own. A proxy before it may have spoken another scheme."""
    try:
        return host != "" and urlsplit(origin).netloc.lower() == host.lower()
    except ValueError:
        return False


def _foreign(got: str, why: str) -> OriginNotAllowed:
    told = f"Origin: got {got}, expected this server's own page or one of allowed_origins in deploy.yaml, because {why}"
    return OriginNotAllowed(told, "Origin")
