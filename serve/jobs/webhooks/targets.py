"""The URLs that events may go to: ``webhook_url`` of a request, and the list in deploy.yaml that allows it."""

import re
from collections.abc import Sequence
from typing import NamedTuple

from cosmos3_models import InvalidInput
from serve.schema import MAX_URL_CHARS

FIELD = "webhook_url"
# Stricter than the standard, so that no two parsers of URLs can disagree about the host.
URL = re.compile(
    r"(?P<scheme>https?)://(?P<host>[A-Za-z0-9_.-]+|\[[0-9A-Fa-f:.]+\])(:(?P<port>[0-9]{1,5}))?"
    r"(?P<path>/[A-Za-z0-9._~!$&'()*+,;=:@%/-]*)?(?P<query>\?[A-Za-z0-9._~!$&'()*+,;=:@%/?-]*)?"
)
AMBIGUOUS = re.compile(r"(^|/)\.\.?(/|$)|%(2e|2f|5c)", re.IGNORECASE)  # paths that a server may read as another one
PORTS = {"http": 80, "https": 443}
FORM = "an http or https URL in ASCII, without user name, fragment and dot segments"


class Target(NamedTuple):
    """A parsed URL. Two with the same origin go to the same server."""

    origin: tuple[str, str, int]
    path: str
    query: str

    @classmethod
    def parse(cls, url: str) -> "Target":
        """Parse a URL.

        Raises:
            ValueError: the URL is malformed, or could be read in two ways.
        """
        found = URL.fullmatch(url)
        if found is None or len(url) > MAX_URL_CHARS or AMBIGUOUS.search(found["path"] or ""):
            raise ValueError(f"expected {FORM}")
        scheme = found["scheme"]
        port = int(found["port"] or PORTS[scheme])
        if not 0 < port < 65_536:
            raise ValueError("expected a port from 1 to 65535")
        return cls((scheme, found["host"].lower(), port), found["path"] or "", found["query"] or "")

    def allows(self, other: "Target") -> bool:
        """Whether ``other`` has the same scheme, host and port, and a path below this one's."""
        prefix = self.path.rstrip("/")
        below = other.path == prefix or other.path.startswith(f"{prefix}/")
        return self.origin == other.origin and below


def check_target(url: str) -> str:
    """Return an entry of the list of targets.

    Raises:
        ValueError: it is no URL, or has a query.
    """
    if Target.parse(url).query:
        raise ValueError("expected a URL without a query")
    return url


class Targets:
    """The allowed targets; none: nobody may ask for events."""

    def __init__(self, urls: Sequence[str]) -> None:
        self._targets = [Target.parse(url) for url in urls]

    def allow(self, url: str) -> bool:
        """Whether events may go to a URL; to none that is malformed."""
        try:
            target = Target.parse(url)
        except ValueError:
            return False
        return any(allowed.allows(target) for allowed in self._targets)

    def check(self, url: str) -> None:
        """Check the ``webhook_url`` of a request.

        Raises:
            InvalidInput: this server sends no events, or none to this URL.
        """
        if not self._targets:
            why = "this server sends no webhooks until its deploy.yaml lists webhook_targets"
            raise InvalidInput(FIELD, shown(url), "no such field", why)
        try:
            Target.parse(url)
        except ValueError as error:
            expected = str(error).removeprefix("expected ")
            raise InvalidInput(FIELD, shown(url), expected, "the server sends events to it") from None
        if not self.allow(url):
            expected = "a URL below one of the webhook_targets of this server's deploy.yaml"
            raise InvalidInput(FIELD, shown(url), expected, "the server sends events to these alone")


def shown(url: str) -> str:
    """The URL as messages and the log name it: without its query, which may be a secret."""
    return url.partition("?")[0][:200]
