"""The prompts of a request as token ids."""

import json
from dataclasses import dataclass
from pathlib import Path

from cosmos3_models.checkpoint.configs import is_there, read_json
from cosmos3_models.errors import InvalidInput
from cosmos3_models.params import GenerationParams
from cosmos3_models.text.chat_tokenizer import ChatTokenizer, Ids
from cosmos3_models.text.metadata import with_metadata

MAX_PROMPT_TOKENS = 4096
DEFAULT_NEGATIVE = Path(__file__).parent / "negative_prompt.json"


@dataclass(frozen=True)
class PromptIds:
    """Token ids, int64 (n,) each."""

    positive: Ids
    negative: Ids | None  # None: guidance is off and the negative prompt never runs


class PromptEncoder:
    """The text side of a checkpoint. Safe to use from several threads."""

    def __init__(self, tokenizer: ChatTokenizer, default_negative: str) -> None:
        self._tokenizer = tokenizer
        self._default_negative = default_negative

    @classmethod
    def from_checkpoint(cls, folder: Path) -> "PromptEncoder":
        """Read ``text_tokenizer/`` and, if it exists, ``assets/negative_prompt.json``.

        Raises:
            CheckpointError: a file is missing or broken, or the vocabulary lacks a token that generation needs.
        """
        own = folder / "assets" / "negative_prompt.json"
        negative = read_json(own if is_there(own) else DEFAULT_NEGATIVE)
        return cls(ChatTokenizer.from_folder(folder / "text_tokenizer"), json.dumps(negative))

    def encode(self, params: GenerationParams) -> PromptIds:
        """Encode both prompts, the positive one with its metadata.

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
        negative = self._negative(params) if params.negative_prompt is None else params.negative_prompt
        return PromptIds(positive, self._checked("negative_prompt", negative))

    def token_ids(self, text: str) -> Ids:
        """Encode one text of any length; see ``ChatTokenizer.ids``."""
        return self._tokenizer.ids(text)

    def _negative(self, params: GenerationParams) -> str:
        """The default: that of videos speaks of motion and cuts, which an image has none of."""
        return "" if params.num_frames == 1 else self._default_negative

    def _checked(self, param: str, text: str) -> Ids:
        ids = self.token_ids(text)
        if len(ids) > MAX_PROMPT_TOKENS:
            raise InvalidInput(
                param, f"{len(ids)} tokens", f"at most {MAX_PROMPT_TOKENS}", "a longer text costs memory in every layer"
            )
        return ids
