"""A guard for tests, which replace its methods, and some that cannot work."""

import threading
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serve.guards.guard import GuardSettings


def settings(name: str = "Scripted", **fields: Any) -> GuardSettings:
    return GuardSettings(import_path=f"{__name__}:{name}", **fields)


class Scripted:
    """Refuses, fails and hangs as the prompt says, and refuses frames by their brightness.

    Args:
        brightest: the mean of the brightest frames that it permits.
    """

    def __init__(self, brightest: float = 255) -> None:
        self._brightest = brightest
        self.asked: list[str] = []
        self.hanging = threading.Event()
        self.released = threading.Event()

    def check_prompt(self, text: str) -> Any:
        self.asked.append(text)
        if "crash" in text:
            raise RuntimeError("/secret/path")
        if "hang" in text:
            self.hanging.set()
            self.released.wait(60)
        if "unclear" in text:
            return False
        return "no weapons" if "weapon" in text else None

    def check_frames(self, frames: NDArray[np.uint8]) -> Any:
        assert frames.ndim == 4
        return "too bright" if frames.mean() > self._brightest else None


class FramesAlone:
    def check_frames(self, _: NDArray[np.uint8]) -> None:
        return None


class Unmade:
    def __init__(self) -> None:
        raise FileNotFoundError("no weights")

    def check_prompt(self, _: str) -> None:
        raise AssertionError

    def check_frames(self, _: NDArray[np.uint8]) -> None:
        raise AssertionError


class Broken:
    def check_prompt(self, _: str) -> None:
        raise OSError("no weights")

    def check_frames(self, _: NDArray[np.uint8]) -> None:
        raise OSError("no weights")


class Idle:
    """Checks nothing."""


class OfWords:
    """Refuses a weapon, fails on a crash, and never hangs: captions contain "changes"."""

    def check_prompt(self, text: str) -> Any:
        if "crash" in text:
            raise RuntimeError("/secret/path")
        return "no weapons" if "weapon" in text else None
