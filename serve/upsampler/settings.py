"""The chat server that rewrites prompts, as the operator names it."""

import re
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, JsonValue

from serve.file_paths import AbsolutePath, Name

KEY = re.compile(r"[!-~]+")

SAMPLING: dict[str, JsonValue] = {
    "max_tokens": 20_000,
    "temperature": 0.7,
    "top_p": 0.8,
    "top_k": 20,
    "presence_penalty": 1.5,
    "seed": 3407,
}
"""The settings with which NVIDIA's own upsampler samples. The seed is fixed, so a repeated request gets the same text
from a server that honours it."""

OURS = {"model", "messages", "response_format", "stream", "n", "tools", "tool_choice"}
"""Fields of the request to the chat server that are no settings."""


def _check_url(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise ValueError("expected http:// or https://, a host and a path, such as http://localhost:8001/v1")
    if parts.username is not None:
        raise ValueError("expected no user and no password, because a key belongs into api_key_file")
    return url.rstrip("/")


def _check_sampling(sampling: dict[str, JsonValue]) -> dict[str, JsonValue]:
    if found := OURS & set(sampling):
        raise ValueError(f"got {sorted(found)}, expected settings of sampling, because the server sets these itself")
    return sampling


class UpsamplerSettings(BaseModel):
    """``prompt_upsampler`` of deploy.yaml.

    Attributes:
        base_url: of the API, as OpenAI's clients take it; ``/chat/completions`` is below it.
        model: by which name the server calls the model.
        api_key_file: contains the key for the server, in one line; None if it needs none.
        timeout_s: all that a prompt may take, attempts and waits included.
        sees_pictures: whether the model takes pictures.
        max_concurrent: prompts that are rewritten at a time, by one replica and in the whole queue of jobs.
        sampling: fields of the request over those of ``SAMPLING``; null leaves one out.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    base_url: Annotated[str, AfterValidator(_check_url)]
    model: Name
    api_key_file: AbsolutePath | None = None
    timeout_s: Annotated[float, Field(gt=0, le=3600)] = 120
    sees_pictures: bool = False
    max_concurrent: Annotated[int, Field(ge=1, le=32)] = 16
    sampling: Annotated[dict[str, JsonValue], AfterValidator(_check_sampling)] = {}

    @property
    def fields(self) -> dict[str, JsonValue]:
        """The model and the settings of every request."""
        chosen = {"model": self.model} | SAMPLING | self.sampling
        return {name: value for name, value in chosen.items() if value is not None}

    def key(self) -> str | None:
        """Read the key for the server; None if it needs none. Read for each prompt, so a changed key applies at once.

        Raises:
            ValueError: the file cannot be read, or holds something else than one key. The message does not repeat it.
        """
        if self.api_key_file is None:
            return None
        try:
            text = Path(self.api_key_file).read_bytes().decode("ascii", "replace").strip()
        except OSError as error:
            why = f"expected a file that can be read: {error.strerror}"
            raise ValueError(f"prompt_upsampler.api_key_file: got {self.api_key_file}, {why}") from None
        if not KEY.fullmatch(text):
            why = "expected one key of visible ASCII characters"
            raise ValueError(f"prompt_upsampler.api_key_file: got {len(text)} characters in {self.api_key_file}, {why}")
        return text
