"""API keys: their form, and the check of a client's key."""

import hashlib
import hmac
import re
from collections.abc import Iterable
from typing import Annotated, Any

from fastapi import Depends
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from serve.errors import NotReady, Unauthorized
from serve.secret_file import SecretFile, SecretLines

KEYS = SecretLines(
    setting="api_keys_file",
    name="key",
    title="API keys",
    pattern=re.compile(r"(?!#)[!-~]{16,}"),
    rule="16 or more visible ASCII characters without a space and without # in front",
    purpose="the file makes keys a requirement",
)


def check_key(key: str) -> str:
    """Return a valid key, or raise ``ValueError``, whose message is logged and so does not repeat the key."""
    if not KEYS.pattern.fullmatch(key):
        raise ValueError(f"got {len(key)} characters, expected a key: {KEYS.rule}")
    return key


class ApiKeys:
    """The keys of deploy.yaml and of a file, which is read again when it changes.

    While the file contains no valid key, or cannot be read, none of its earlier keys is valid either.

    Raises:
        ValueError: the file contains no key at the start.
    """

    def __init__(self, keys: Iterable[str], file: str | None) -> None:
        self._fixed = frozenset(map(_digest, keys))
        self._file = SecretFile(file, KEYS) if file else None
        self._read: tuple[str, ...] = ()
        self._of_file: frozenset[bytes] = frozenset()

    @property
    def guard(self) -> bool:
        """Whether requests need a key."""
        return bool(self._fixed or self._file)

    def check(self, key: str) -> None:
        """Raise ``Unauthorized`` for an unknown key, or ``NotReady`` while the file contains no key."""
        of_file = self._digests_of_file()
        got = _digest(key)
        # Every key is compared, each in constant time, so that the duration reveals nothing.
        if any([hmac.compare_digest(got, known) for known in self._fixed | of_file]):
            return
        if self._file and not of_file:
            raise NotReady("the server's file of API keys contains no valid key; try again later", retry_after_s=5)
        raise Unauthorized("Authorization: got no valid key, expected 'Bearer KEY' with a key of this server")

    def _digests_of_file(self) -> frozenset[bytes]:
        read = self._file.secrets() if self._file else ()
        if read is not self._read:  # the same tuple until the file changes
            self._read, self._of_file = read, frozenset(map(_digest, read))
        return self._of_file


def key_check(keys: ApiKeys) -> Any:
    """A dependency that refuses clients without a valid key."""
    Bearer = Annotated[HTTPAuthorizationCredentials | None, Depends(HTTPBearer(auto_error=False))]

    async def check(credentials: Bearer) -> None:
        keys.check(credentials.credentials if credentials else "")

    return check


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()
