"""A chat server with OpenAI's API: vLLM, Ray Serve LLM, llama.cpp or a hosted one."""

import json
import logging
from collections.abc import Sequence
from typing import Any, NamedTuple

import httpx

from serve.upsampler.settings import UpsamplerSettings

logger = logging.getLogger("ray.serve")

MAX_ANSWER_BYTES = 1 << 20  # some twenty times the longest prompt, for the thoughts before it
MAX_LOGGED_CHARS = 300
CONNECT_S = 10.0  # so that a lost packet does not cost the whole time
UNKNOWN_FIELD = (400, 422)
"""Answers to a request with a field that the server does not know; none of them tells which field it was."""
TRY_AGAIN = (408, 425, 429)
"""Refusals that may end, like all of 500 and above."""
SECRET = (401, 403)
"""Refusals whose text may repeat a part of the key."""


class Dialect(NamedTuple):
    """What a server understands beside the fields that all do.

    Attributes:
        without: settings that are left out.
        schema: whether it decodes by a JSON schema.
    """

    without: tuple[str, ...] = ()
    schema: bool = True


DIALECTS: Sequence[Dialect] = (
    Dialect(),  # vLLM and what is built on it
    Dialect(without=("top_k",)),  # OpenAI
    Dialect(without=("top_k",), schema=False),  # a server that knows no response_format
)


class ChatFailed(Exception):
    """The server gave no answer; the message is for clients.

    Args:
        again: whether the same request may succeed later.
        after_s: when, if the server says so.
    """

    def __init__(self, message: str, again: bool = False, after_s: float | None = None) -> None:
        super().__init__(message)
        self.again, self.after_s = again, after_s


class ChatServer:
    """Sends chats to the server, in the first dialect of ``DIALECTS`` that it accepts."""

    def __init__(self, settings: UpsamplerSettings) -> None:
        self._settings = settings
        self._url = f"{settings.base_url}/chat/completions"
        # No redirect is followed: the key and the prompt are for this server. The caller bounds the time as a whole.
        timeout, limits = httpx.Timeout(None, connect=CONNECT_S), httpx.Limits(max_connections=None)
        self._client = httpx.AsyncClient(timeout=timeout, limits=limits)
        self._dialect = 0

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    async def answer(self, messages: list[dict[str, Any]], schema: dict[str, Any], attempt: int = 0) -> str:
        """Return the text that the model answers with.

        Args:
            schema: the JSON schema of the answer.
            attempt: changes the seed, after an answer that was of no use.

        Raises:
            ChatFailed: there is no answer, or it has no text.
        """
        fields = self._settings.fields | {"messages": messages}
        if isinstance(seed := fields.get("seed"), int):
            fields["seed"] = seed + attempt
        for number in range(self._dialect, len(DIALECTS)):
            status, body = await self._post(_in_dialect(fields, schema, DIALECTS[number]))
            if status not in UNKNOWN_FIELD:
                if status == 200:
                    self._dialect = number
                break
        if status != 200:
            raise _refusal(status, body)
        return _text(body)

    async def _post(self, fields: dict[str, Any]) -> tuple[int, bytes]:
        """Return status and body of an answer or of a final refusal; raise any other as ``ChatFailed``."""
        try:
            key = self._settings.key()
        except ValueError as error:
            logger.error(str(error))
            raise ChatFailed("its key cannot be read") from None
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        try:
            async with self._client.stream("POST", self._url, json=fields, headers=headers) as response:
                if response.status_code in TRY_AGAIN or response.status_code >= 500:
                    _log(response.status_code, b"")
                    message = f"its server answered {response.status_code}"
                    raise ChatFailed(message, again=True, after_s=_retry_after(response))
                return response.status_code, await _read(response)
        except httpx.HTTPError as error:
            logger.warning(f"The prompt upsampler at {self._url} cannot be reached: {type(error).__name__}: {error}")
            raise ChatFailed("its server cannot be reached, or broke the connection off", again=True) from None


def _in_dialect(fields: dict[str, Any], schema: dict[str, Any], dialect: Dialect) -> dict[str, Any]:
    spoken = {name: value for name, value in fields.items() if name not in dialect.without}
    if dialect.schema:
        form = {"name": "caption", "schema": schema, "strict": True}
        spoken["response_format"] = {"type": "json_schema", "json_schema": form}
    return spoken


async def _read(response: httpx.Response) -> bytes:
    body = bytearray()
    async for block in response.aiter_bytes():
        body += block
        if len(body) > MAX_ANSWER_BYTES:
            raise ChatFailed(f"its server's answer has more than {MAX_ANSWER_BYTES} bytes")
    return bytes(body)


def _retry_after(response: httpx.Response) -> float | None:
    try:
        return max(0.0, float(response.headers.get("Retry-After", "")))
    except ValueError:  # absent, or a date
        return None


def _refusal(status: int, body: bytes) -> ChatFailed:
    _log(status, body)
    return ChatFailed(f"its server answered {status}")


def _log(status: int, body: bytes) -> None:
    text = "" if status in SECRET else body.decode("utf-8", "replace")[:MAX_LOGGED_CHARS]
    logger.warning(f"The prompt upsampler answered {status}. {text}".rstrip())


def _text(body: bytes) -> str:
    """The text of a chat completion."""
    try:
        message = json.loads(body)["choices"][0]["message"]
        text, refused = message["content"], message.get("refusal")
    except (ValueError, RecursionError, LookupError, TypeError, AttributeError):
        raise ChatFailed("its server's answer is no chat completion", again=True) from None
    if refused:
        raise ChatFailed("its model refused the request")
    if not isinstance(text, str):
        raise ChatFailed("its server's answer has no text", again=True)
    return text
