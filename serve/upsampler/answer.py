"""What the stage that rewrites prompts answers, apart from the stage: whoever asks needs no client of HTTP."""

from typing import NamedTuple


class Upsampled(NamedTuple):
    """A rewritten prompt, or why there is none, in words for the client."""

    prompt: str | None = None
    error: str | None = None
