"""API keys: their form, the file that contains them, and the check of a client's key."""

import hashlib
import hmac
import logging
import os
import re
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

from fastapi import Depends
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from serve.errors import NotReady, Unauthorized

logger = logging.getLogger("ray.serve")

KEY = re.compile(r"(?!#)[!-~]{16,}")
RULE = "16 or more visible ASCII characters without a space and without # in front"
LOOK_S = 1.0  # between two checks whether the file has changed


def check_key(key: str) -> str:
    """Return a valid key, or raise ``ValueError``, whose message is logged and so does not repeat the key."""
    if not KEY.fullmatch(key):
        raise ValueError(f"got {len(key)} characters, expected a key: {RULE}")
    return key


def check_key_file(path: str) -> None:
    """Raise ``ValueError`` unless every line of the file is a key or blank, and one is a key."""
    keys, faults = _read(path)
    if faults:
        raise ValueError(faults[0])
    if not keys:
        raise ValueError(
            f"api_keys_file: got no key in {path}, expected one to a line, because the file makes keys a requirement"
        )


class ApiKeys:
    """The keys of deploy.yaml and of a file, which is read again when it changes.

    While the file contains no valid key, or cannot be read, none of its earlier keys is valid either: they may have
    been revoked.

    Raises:
        ValueError: the file contains no key at the start.
    """

    def __init__(self, keys: Iterable[str], file: str | None) -> None:
        self._fixed = frozenset(map(_digest, keys))
        self._file = file
        self._of_file: frozenset[bytes] = frozenset()
        self._state: object = None
        self._looked_at = -LOOK_S
        self._refresh()
        if file and not self._of_file:
            check_key_file(file)

    @property
    def guard(self) -> bool:
        """Whether requests need a key."""
        return bool(self._fixed or self._file)

    def check(self, key: str) -> None:
        """Raise ``Unauthorized`` for an unknown key, or ``NotReady`` while the file contains no key."""
        self._refresh()
        got = _digest(key)
        # Every key is compared, each in constant time, so that the duration reveals nothing.
        if any([hmac.compare_digest(got, known) for known in self._fixed | self._of_file]):
            return
        if self._file and not self._of_file:
            raise NotReady("the server's file of API keys contains no valid key; try again later", retry_after_s=5)
        raise Unauthorized("Authorization: got no valid key, expected 'Bearer KEY' with a key of this server")

    def _refresh(self) -> None:
        if self._file is None or time.monotonic() - self._looked_at < LOOK_S:
            return
        self._looked_at = time.monotonic()
        state = _state(self._file)
        if state == self._state:
            return
        keys, faults = _read(self._file)
        self._of_file, self._state = frozenset(map(_digest, keys)), state
        for fault in faults:
            logger.error(fault)
        logger.log(logging.INFO if keys else logging.ERROR, f"API keys: {len(keys)} read from {self._file}.")


def key_check(keys: ApiKeys) -> Any:
    """A dependency that refuses clients without a valid key."""
    Bearer = Annotated[HTTPAuthorizationCredentials | None, Depends(HTTPBearer(auto_error=False))]

    async def check(credentials: Bearer) -> None:
        keys.check(credentials.credentials if credentials else "")

    return check


def _read(path: str) -> tuple[list[str], list[str]]:
    """The keys of a file, and an error for each other line that is not blank."""
    try:
        lines = Path(path).read_bytes().splitlines()
    except OSError as error:
        return [], [f"api_keys_file: got {path}, expected a file that can be read: {error.strerror}"]
    keys, faults = [], []
    for number, line in enumerate(lines, 1):
        text = line.decode("ascii", "replace").strip()
        if KEY.fullmatch(text):
            keys.append(text)
        elif text:
            what = "a comment" if text.startswith("#") else "no key"
            faults.append(f"api_keys_file: got {what} in line {number} of {path}, expected on each line a key: {RULE}")
    return keys, faults


def _state(path: str) -> object:
    """A value that changes with the file, also if it is replaced as a whole, as a mounted secret is."""
    try:
        found = os.stat(path)
    except OSError as error:
        return error.errno
    return found.st_mtime_ns, found.st_ctime_ns, found.st_size, found.st_ino


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()
