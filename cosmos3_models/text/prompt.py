"""From prompts to token ids: metadata, the checkpoint's chat template, its tokenizer."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from jinja2.sandbox import ImmutableSandboxedEnvironment
from numpy.typing import NDArray
from tokenizers import Tokenizer

from cosmos3_models.checkpoint.configs import check_content, is_there, read_json, read_text
from cosmos3_models.errors import CheckpointError, InvalidInput
from cosmos3_models.params import GenerationParams

MAX_PROMPT_TOKENS = 4096
START_OF_GENERATION = "<|vision_start|>"
DEFAULT_NEGATIVE = Path(__file__).parent / "negative_prompt.json"

Ids = NDArray[np.int64]


@dataclass(frozen=True)
class PromptIds:
    """Token ids, int64 (n,) each."""

    positive: Ids
    negative: Ids | None  # None: guidance is off and the negative prompt never runs


class PromptEncoder:
    """The text side of a checkpoint. Safe to use from several threads."""

    def __init__(self, tokenizer: Tokenizer, template: jinja2.Template, suffix: tuple[int, int], negative: str) -> None:
        self._tokenizer = tokenizer
        self._template = template
        self._suffix = suffix
        self._default_negative = negative

    @classmethod
    def from_checkpoint(cls, folder: Path) -> "PromptEncoder":
        """Read ``text_tokenizer/`` and, where there is one, ``assets/negative_prompt.json``.

        Raises:
            CheckpointError: a file is missing or broken, or the vocabulary lacks a token that generation needs.
        """
        text = folder / "text_tokenizer"
        config = read_json(text / "tokenizer_config.json")
        tokenizer = _read_tokenizer(text / "tokenizer.json")
        eos = config.get("eos_token")
        eos = eos.get("content") if isinstance(eos, dict) else eos
        suffix = tuple(_token_id(tokenizer, token, text) for token in (eos, START_OF_GENERATION))
        negative = folder / "assets" / "negative_prompt.json"
        negative = negative if is_there(negative) else DEFAULT_NEGATIVE
        return cls(tokenizer, _read_template(text, config), (suffix[0], suffix[1]), json.dumps(read_json(negative)))

    def encode(self, params: GenerationParams) -> PromptIds:
        """The ids of both prompts.

        Raises:
            InvalidInput: more than ``MAX_PROMPT_TOKENS`` tokens.
        """
        prompt = params.prompt
        if params.append_metadata:
            prompt = with_metadata(
                prompt, num_frames=params.num_frames, fps=params.fps, height=params.height, width=params.width
            )
        positive = self._checked("prompt", prompt)
        if params.guidance_scale == 1:
            return PromptIds(positive, None)
        negative = self._default_negative if params.negative_prompt is None else params.negative_prompt
        return PromptIds(positive, self._checked("negative_prompt", negative))

    def token_ids(self, text: str) -> Ids:
        """``text`` as the user's turn of a chat, then the end-of-text and the start-of-generation id."""
        try:
            chat = self._template.render(messages=[{"role": "user", "content": text}], add_generation_prompt=True)
        except jinja2.TemplateError as error:
            raise CheckpointError("text_tokenizer", f"the chat template failed ({error})") from None
        ids = self._tokenizer.encode(chat, add_special_tokens=False).ids
        return np.array([*ids, *self._suffix], dtype=np.int64)

    def _checked(self, param: str, text: str) -> Ids:
        ids = self.token_ids(text)
        if len(ids) > MAX_PROMPT_TOKENS:
            raise InvalidInput(
                param, f"{len(ids)} tokens", f"at most {MAX_PROMPT_TOKENS}", "a longer text costs memory in every layer"
            )
        return ids


def with_metadata(prompt: str, *, num_frames: int, fps: float, height: int, width: int) -> str:
    """The prompt with its length, frame rate and size: as sentences, or as keys of a JSON object."""
    caption = _json_object(prompt)
    if caption is not None:
        return _caption_with_metadata(caption, num_frames, fps, height, width)
    text, medium = prompt.strip(), "image"
    if num_frames > 1:
        medium = "video"
        text = _append(text, f"The video is {num_frames / fps:.1f} seconds long and is of {fps:.0f} FPS.")
    return _append(text, f"This {medium} is of {height}x{width} resolution.")


def _append(text: str, sentence: str) -> str:
    return text.strip().rstrip(".") + ". " + sentence


def _caption_with_metadata(caption: dict[str, Any], num_frames: int, fps: float, height: int, width: int) -> str:
    if num_frames > 1:
        caption |= {"duration": f"{int(num_frames / fps)}s", "fps": float(fps)}
    else:
        caption = {key: value for key, value in caption.items() if key not in ("duration", "fps")}
    return json.dumps(caption | {"resolution": {"H": height, "W": width}})


def _json_object(text: str) -> dict[str, Any] | None:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _read_tokenizer(path: Path) -> Tokenizer:
    check_content(path)
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the tokenizers package raises nothing narrower
        raise CheckpointError(path, f"not a tokenizer ({error})") from None


def _token_id(tokenizer: Tokenizer, token: object, folder: Path) -> int:
    found = tokenizer.token_to_id(token) if isinstance(token, str) else None
    if found is None:
        raise CheckpointError(folder, f"got no id for the token {token!r}, expected one in the vocabulary")
    return int(found)


def _read_template(folder: Path, config: dict[str, Any]) -> jinja2.Template:
    """The chat template, from any of the three places where checkpoints keep it."""
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
