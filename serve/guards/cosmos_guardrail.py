"""NVIDIA's guardrail models as a guard, of the package ``cosmos-guardrail`` (the extra ``guardrail``).

The package's own runner permits everything if there is no model, and most of its models permit what they fail on. So
the models are called here one by one, by methods that let errors through.
"""

from functools import cached_property
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

SAFE = 0  # of the classifier's classes


class CosmosGuardrail:
    """Refuses prompts by a blocklist and Qwen3Guard, and frames by a classifier of their content. It blurs no faces.

    Args:
        checkpoint: of the blocklist and the classifier on the Hugging Face Hub, which asks for consent to its licence.
        device: cpu or cuda, of the models.
        every: of so many frames one is classified.

    Raises:
        ImportError: the package is not installed.
    """

    def __init__(self, checkpoint: str = "nvidia/Cosmos-1.0-Guardrail", device: str = "cpu", every: int = 8) -> None:
        self._package: Any = import_module("cosmos_guardrail.cosmos_guardrail")
        self._checkpoint, self._device, self._every = checkpoint, device, every

    def check_prompt(self, text: str) -> str | None:
        """Return why a prompt is refused, or None."""
        permitted, _ = self._blocklist.is_safe(text)
        if not permitted:
            return "a word of the prompt is on the blocklist"
        permitted, why = self._text_model.extract_label_and_categories(text)  # is_safe permits what this fails on
        return None if permitted else str(why)

    def check_frames(self, frames: NDArray[np.uint8]) -> str | None:
        """Return the class of the first frame that is refused, or None."""
        for frame in frames[:: self._every]:
            if (found := self._class_of(frame)) != SAFE:
                return str(self._package.CLASS_IDX_TO_NAME[found])
        return None

    def _class_of(self, frame: NDArray[np.uint8]) -> int:
        """The classifier's class of one frame; its own methods permit frames that they fail on."""
        import torch  # here, because the ingress imports this module as well

        encoder, network = self._classifier.encoder, self._classifier.model.network
        with torch.inference_mode():
            pixels = encoder.processor(images=frame, return_tensors="pt").to(self._device)
            features = encoder.model.get_image_features(**pixels)
            features = getattr(features, "pooler_output", features)  # a tensor before transformers 5
            scores = network(features / features.norm(dim=-1, keepdim=True))
        if not scores.isfinite().all():
            raise ValueError("the classifier's scores are not finite, so they name no class")
        return int(scores.argmax(dim=-1).item())

    @cached_property
    def _blocklist(self) -> Any:
        blocklist = self._package.Blocklist(self._checkpoint)
        if not blocklist.blocklist_words or not blocklist.exact_match_words:
            raise ValueError(f"{self._checkpoint} has no blocklist")
        return blocklist

    @cached_property
    def _text_model(self) -> Any:
        model = self._package.Qwen3Guard()
        model.to(self._device)
        return model

    @cached_property
    def _classifier(self) -> Any:
        classifier = self._package.VideoContentSafetyFilter(self._checkpoint)
        return classifier.to(self._device).eval()
