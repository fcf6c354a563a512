"""A checkpoint's tokenizer and chat template: text to token ids."""

import json
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import tokenizers
from jinja2.sandbox import ImmutableSandboxedEnvironment
from numpy.typing import NDArray

from cosmos3_models.checkpoint.configs import check_content, is_there, read_json, read_text
from cosmos3_models.errors import CheckpointError

START_OF_GENERATION = "<|vision_start|>"

Ids = NDArray[np.int64]


class ChatTokenizer:
    """``text_tokenizer/`` of a checkpoint. Safe to use from several threads.

    Args:
        suffix: the ids of the end of the text and of the start of generation.
    """

    def __init__(self, tokenizer: tokenizers.Tokenizer, template: jinja2.Template, suffix: tuple[int, int]) -> None:
        self._tokenizer = tokenizer
        self._template = template
        self._suffix = suffix

    @classmethod
    def from_folder(cls, folder: Path) -> "ChatTokenizer":
        """Read a ``text_tokenizer`` folder.

        Raises:
            CheckpointError: a file is missing or broken, or the vocabulary lacks a token that generation needs.
        """
        config = read_json(folder / "tokenizer_config.json")
        tokenizer = _read_tokenizer(folder / "tokenizer.json")
        eos = config.get("eos_token")
        eos = eos.get("content") if isinstance(eos, dict) else eos
        suffix = _token_id(tokenizer, eos, folder), _token_id(tokenizer, START_OF_GENERATION, folder)
        return cls(tokenizer, _read_template(folder, config), suffix)

    def ids(self, text: str) -> Ids:
        """Encode ``text`` as the user's turn of a chat, then the end of the text and the start of generation.

        Returns:
            int64 (n,)

        Raises:
            CheckpointError: the chat template failed.
        """
        try:
            chat = self._template.render(messages=[{"role": "user", "content": text}], add_generation_prompt=True)
        except jinja2.TemplateError as error:
            raise CheckpointError("text_tokenizer", f"the chat template failed ({error})") from None
        ids = self._tokenizer.encode(chat, add_special_tokens=False).ids
        return np.array([*ids, *self._suffix], dtype=np.int64)


def _read_tokenizer(path: Path) -> tokenizers.Tokenizer:
    check_content(path)
    try:
        return tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the tokenizers package raises nothing narrower
        raise CheckpointError(path, f"not a tokenizer ({error})") from None


def _token_id(tokenizer: tokenizers.Tokenizer, token: object, folder: Path) -> int:
    found = tokenizer.token_to_id(token) if isinstance(token, str) else None
    if found is None:
        raise CheckpointError(folder, f"got no id for the token {token!r}, expected one in the vocabulary")
    return int(found)


def _read_template(folder: Path, config: dict[str, Any]) -> jinja2.Template:
    """Read the chat template from whichever of three places the checkpoint keeps it in."""
    file = folder / "chat_template.jinja"
    source: Any = read_text(file) if is_there(file) else None
    if source is None and is_there(folder / "chat_template.json"):
        source = read_json(folder / "chat_template.json").get("chat_template")
    source = source or config.get("chat_template")
    if isinstance(source, list):
        source = next((entry.get("template") for entry in source if entry.get("name") == "default"), None)
    if not isinstance(source, str):
        raise CheckpointError(folder, "no chat template: neither chat_template.jinja nor tokenizer_config.json has one")
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.globals["raise_exception"] = _raise_template_error
    environment.filters["tojson"] = lambda value, **options: json.dumps(value, ensure_ascii=False, **options)
    try:
        return environment.from_string(source)
    except jinja2.TemplateError as error:
        raise CheckpointError(folder, f"the chat template does not compile ({error})") from None


def _raise_template_error(message: str) -> None:
    """Templates call this on messages that they do not take."""
    raise jinja2.TemplateError(message)
