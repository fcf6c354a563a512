"""The operator's guard, loaded and called so that it closes: whatever it did not permit is refused."""

import asyncio
import logging
import re
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from importlib import import_module
from typing import Annotated, Any, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from serve.errors import ContentRefused, GuardFailed

logger = logging.getLogger("ray.serve")

METHODS = ("check_prompt", "check_frames")
PROBE = "A large red ball bounces slowly on the floor."
"""With this prompt a guard shows at the start that it works, whatever it says of it."""

UNCHECKED = "prompt: this server's guard could not check it, so it is refused; try again later"


class Guard(Protocol):
    """What a guard's class defines: both methods or one of them. The keyword arguments of its constructor are options.

    The ingress makes an object for prompts and each video decoder one for frames, and each calls its own from one
    thread at a time. A model that only one of the methods needs is best loaded when that method is called first, which
    is before the replica is ready.
    """

    def check_prompt(self, text: str) -> str | None:
        """Return why a prompt is refused, in words for the client, or None."""

    def check_frames(self, frames: NDArray[np.uint8]) -> str | None:
        """Return why frames are refused, in words for the client, or None.

        Args:
            frames: uint8 (frames, height, width, 3), read-only: some of a video, all of which come, in their order.
        """


def _import_path(path: str) -> str:
    if not re.fullmatch(r"[\w.]+:\w+", path):
        raise ValueError(f"got {path!r}, expected module:Class")
    return path


class GuardSettings(BaseModel):
    """``guard`` of deploy.yaml.

    Attributes:
        import_path: ``module:Class`` of a ``Guard``, importable on every node.
        options: keyword arguments of its constructor.
        timeout_s: a check that takes longer than this counts as failed.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    import_path: Annotated[str, AfterValidator(_import_path)]
    options: dict[str, Any] = {}
    timeout_s: Annotated[float, Field(gt=0)] = 30

    def guard_class(self) -> Callable[..., Any]:
        """Import the class.

        Raises:
            ValueError: it cannot be imported, or has no method that checks anything.
        """
        module, _, name = self.import_path.partition(":")
        try:
            found: Callable[..., Any] = getattr(import_module(module), name)
        except Exception as error:
            raise self._unusable(f"importing it raised {type(error).__name__}: {error}") from error
        if not any(hasattr(found, method) for method in METHODS):
            raise self._unusable(f"it has neither of the methods {' and '.join(METHODS)}")
        return found

    def method(self, name: str) -> Callable[[Any], Any] | None:
        """Make a guard and return one of its methods; None, and no guard, if its class does not define the method.

        Raises:
            ValueError: the class cannot be imported, or its constructor failed.
        """
        guard_class = self.guard_class()
        if not hasattr(guard_class, name):
            return None
        try:
            found: Callable[[Any], Any] = getattr(guard_class(**self.options), name)
        except Exception as error:
            raise self._unusable(f"its constructor raised {type(error).__name__}: {error}") from error
        return found

    def _unusable(self, why: str) -> ValueError:
        return ValueError(f"guard: got {self.import_path!r}, expected a class that checks prompts or frames, but {why}")


class PromptGuard:
    """Checks prompts, one at a time in a thread of its own. Any process that brings a new prompt may have one.

    Args:
        settings: of the guard; None: every prompt is permitted.

    Raises:
        ValueError: the guard cannot be made, or does not check its first prompt.
    """

    def __init__(self, settings: GuardSettings | None) -> None:
        self._settings = settings
        self._turn = asyncio.Lock()
        self._thread = ThreadPoolExecutor(1, "guard")
        self._overdue: asyncio.Future[str | None] | None = None
        self._method = None if settings is None else self._thread.submit(settings.method, "check_prompt").result()
        if settings is not None and self._method is not None:
            self._prove(self._thread.submit(self._reason, PROBE), settings)

    async def check(self, text: str) -> None:
        """Return if a prompt is permitted.

        Raises:
            ContentRefused: it is not.
            GuardFailed: the guard raised, took too long, or still hangs in an earlier check.
        """
        if self._method is None:
            return
        async with self._turn:
            reason = await self._bounded(text)
        if reason is not None:
            raise ContentRefused(f"prompt: refused by this server's content policy: {reason}", "prompt")

    async def _bounded(self, text: str) -> str | None:
        assert self._settings is not None
        if self._overdue is not None and not self._overdue.done():
            raise GuardFailed(UNCHECKED, "prompt")
        running = asyncio.get_running_loop().run_in_executor(self._thread, self._reason, text)
        running.add_done_callback(_retrieve_error)
        await asyncio.wait([running], timeout=self._settings.timeout_s)
        if not running.done():
            self._overdue = running
            logger.error(f"The guard has not checked a prompt within {self._settings.timeout_s:g} s: it is refused.")
            raise GuardFailed(UNCHECKED, "prompt")
        try:
            return running.result()
        except Exception as error:
            logger.exception("The guard failed on a prompt, which is refused.")
            raise GuardFailed(UNCHECKED, "prompt") from error

    def _reason(self, text: str) -> str | None:
        assert self._method is not None
        return _checked(self._method(text))

    def _prove(self, first: "Future[str | None]", settings: GuardSettings) -> None:
        try:
            first.result(settings.timeout_s)
        except Exception as error:
            raise settings._unusable(f"its check_prompt raised {type(error).__name__}: {error}") from error


class FrameGuard:
    """Checks frames in the thread of the caller, who bounds the time.

    Args:
        settings: of the guard; None: all frames are permitted.

    Attributes:
        timeout_s: a check that takes longer than this hangs.

    Raises:
        ValueError: the guard cannot be made.
    """

    def __init__(self, settings: GuardSettings | None) -> None:
        self._method = None if settings is None else settings.method("check_frames")
        self.timeout_s = 0.0 if settings is None else settings.timeout_s

    def check(self, frames: NDArray[np.uint8]) -> None:
        """Return if these frames, uint8 (frames, height, width, 3), are permitted.

        Raises:
            ContentRefused: they are not. What the guard itself raises is raised as it is.
        """
        if self._method is None:
            return
        shown = frames.view()
        shown.flags.writeable = False
        if (reason := _checked(self._method(shown))) is not None:
            raise ContentRefused(f"frames refused by this server's content policy: {reason}")


def _checked(answer: object) -> str | None:
    """The answer of a guard.

    Raises:
        TypeError: it is neither a reason nor None, so it permits nothing.
    """
    if answer is None or isinstance(answer, str):
        return answer
    raise TypeError(f"the guard returned {answer!r}, expected a reason or None")


def _retrieve_error(running: "asyncio.Future[str | None]") -> None:
    """Keep asyncio from logging the error of a check whose caller has gone as unretrieved."""
    if not running.cancelled():
        running.exception()
