"""A file of secrets, one to a line, that is read again when it changes."""

import logging
import os
import re
import time
from dataclasses import dataclass
from pathlib import Path

logger = logging.getLogger("ray.serve")

LOOK_S = 1.0  # between two checks whether the file has changed


@dataclass(frozen=True)
class SecretLines:
    """What the lines of a file are. No message repeats a line.

    Attributes:
        setting: the file's name in deploy.yaml.
        name: of one secret.
        title: of all of them, for the log.
        pattern: of a secret.
        rule: the pattern in words.
        purpose: why the file must contain one.
    """

    setting: str
    name: str
    title: str
    pattern: re.Pattern[str]
    rule: str
    purpose: str

    def read(self, path: str) -> tuple[list[str], list[str]]:
        """The secrets of a file, and an error for each other line that is not blank."""
        try:
            lines = Path(path).read_bytes().splitlines()
        except OSError as error:
            return [], [f"{self.setting}: got {path}, expected a file that can be read: {error.strerror}"]
        secrets, faults = [], []
        for number, line in enumerate(lines, 1):
            text = line.decode("ascii", "replace").strip()
            if self.pattern.fullmatch(text):
                secrets.append(text)
            elif text:
                what = "a comment" if text.startswith("#") else f"no {self.name}"
                expected = f"on each line a {self.name}: {self.rule}"
                faults.append(f"{self.setting}: got {what} in line {number} of {path}, expected {expected}")
        return secrets, faults

    def check(self, path: str) -> None:
        """Raise ``ValueError`` unless every line of the file is a secret or blank, and one is a secret."""
        secrets, faults = self.read(path)
        if faults:
            raise ValueError(faults[0])
        if not secrets:
            got = f"no {self.name} in {path}"
            raise ValueError(f"{self.setting}: got {got}, expected one to a line, because {self.purpose}")


class SecretFile:
    """The secrets of a file.

    While the file contains no valid secret, or cannot be read, there are none: earlier ones may have been revoked.

    Raises:
        ValueError: the file contains no secret at the start.
    """

    def __init__(self, path: str, lines: SecretLines) -> None:
        self._path = path
        self._lines = lines
        self._secrets: tuple[str, ...] = ()
        self._state: object = None
        self._looked_at = -LOOK_S
        if not self.secrets():
            lines.check(path)

    def secrets(self) -> tuple[str, ...]:
        """The secrets of the file as it was within the last second."""
        if time.monotonic() - self._looked_at >= LOOK_S:
            self._looked_at = time.monotonic()
            state = _state(self._path)
            if state != self._state:
                self._state = state
                self._read()
        return self._secrets

    def _read(self) -> None:
        secrets, faults = self._lines.read(self._path)
        self._secrets = tuple(secrets)
        for fault in faults:
            logger.error(fault)
        level = logging.INFO if secrets else logging.ERROR
        logger.log(level, f"{self._lines.title}: {len(secrets)} read from {self._path}.")


def _state(path: str) -> object:
    """A value that changes with the file, also if it is replaced as a whole, as a mounted secret is."""
    try:
        found = os.stat(path)
    except OSError as error:
        return error.errno
    return found.st_mtime_ns, found.st_ctime_ns, found.st_size, found.st_ino
