"""The adapter to NVIDIA's guardrail models, over stand-ins with the package's interface: it closes."""

import sys
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from serve.guards.cosmos_guardrail import CosmosGuardrail
from serve.guards.guard import FrameGuard, GuardSettings, PromptGuard

PATH = "serve.guards.cosmos_guardrail:CosmosGuardrail"
PACKAGE = "cosmos_guardrail.cosmos_guardrail"
BLACK, WHITE = np.zeros((64, 48, 3), np.uint8), np.full((64, 48, 3), 255, np.uint8)


class Blocklist:
    blocklist_words = ("gun",)
    exact_match_words = ("rifle",)

    def __init__(self, _: str) -> None:
        pass

    def is_safe(self, prompt: str) -> tuple[bool, str]:
        return ("gun" not in prompt, f"Prompt blocked: {prompt}")


class Qwen3Guard:
    """As the package's: what it fails on, its ``is_safe`` permits."""

    def to(self, device: str) -> None:
        assert device == "cpu"

    def extract_label_and_categories(self, prompt: str) -> tuple[bool, str]:
        if "label" in prompt:
            raise AttributeError("'NoneType' object has no attribute 'lower'")
        return ("poison" not in prompt, "Safety: Unsafe, Categories: ['Violent']")

    def is_safe(self, _: str) -> tuple[bool, str]:
        return True, "Unexpected error occurred when running Qwen3Guard guardrail."


class Pixels(dict[str, torch.Tensor]):
    def to(self, device: str) -> "Pixels":
        assert device == "cpu"
        return self


class Classifier(torch.nn.Module):
    """Classifies a frame by the larger of its two features, which are brightness and darkness."""

    def __init__(self, _: str) -> None:
        super().__init__()
        self.encoder = SimpleNamespace(processor=self._pixels, model=SimpleNamespace(get_image_features=self._features))
        self.model = SimpleNamespace(network=lambda features: features)
        self.output = True

    def _pixels(self, images: Any, return_tensors: str) -> Pixels:
        assert return_tensors == "pt"
        return Pixels(mean=torch.tensor(images).float().mean()[None])

    def _features(self, mean: torch.Tensor) -> Any:
        features = torch.stack([255 - mean, mean], dim=-1)
        return SimpleNamespace(pooler_output=features) if self.output else features

    def is_safe(self, _: object) -> tuple[bool, str]:
        return True, "safe frames detected"


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    module: Any = ModuleType(PACKAGE)
    module.Blocklist, module.Qwen3Guard, module.VideoContentSafetyFilter = Blocklist, Qwen3Guard, Classifier
    module.CLASS_IDX_TO_NAME = {0: "Safe", 1: "Violence"}
    monkeypatch.setitem(sys.modules, "cosmos_guardrail", ModuleType("cosmos_guardrail"))
    monkeypatch.setitem(sys.modules, PACKAGE, module)
    yield module


@pytest.mark.usefixtures("package")
def test_prompts_pass_the_blocklist_and_the_text_model() -> None:
    guard = CosmosGuardrail()
    assert guard.check_prompt("a flower") is None
    assert guard.check_prompt("a gun") == "a word of the prompt is on the blocklist"
    assert guard.check_prompt("poison") == "Safety: Unsafe, Categories: ['Violent']"


@pytest.mark.usefixtures("package")
def test_a_text_model_that_gives_no_label_permits_nothing() -> None:
    with pytest.raises(AttributeError):
        CosmosGuardrail().check_prompt("label")


@pytest.mark.parametrize("output", [True, False], ids=["transformers 5", "a tensor"])
@pytest.mark.usefixtures("package")
def test_a_frame_of_an_unsafe_class_is_refused_by_its_name(output: bool) -> None:
    guard = CosmosGuardrail(every=4)
    guard._classifier.output = output
    assert guard.check_frames(np.stack([BLACK] * 9)) is None
    assert guard.check_frames(np.stack([BLACK] * 8 + [WHITE])) == "Violence"
    assert guard.check_frames(np.stack([BLACK] * 7 + [WHITE])) is None, "one of four frames is classified"


@pytest.mark.usefixtures("package")
def test_a_frame_that_cannot_be_classified_is_not_permitted(monkeypatch: pytest.MonkeyPatch) -> None:
    guard = CosmosGuardrail()
    monkeypatch.setattr(guard._classifier.encoder, "processor", None)
    with pytest.raises(TypeError):
        guard.check_frames(BLACK[None])


@pytest.mark.usefixtures("package")
def test_scores_that_are_no_numbers_permit_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    guard = CosmosGuardrail()
    monkeypatch.setattr(guard._classifier.model, "network", lambda features: features * float("nan"))
    with pytest.raises(ValueError, match="not finite"):
        guard.check_frames(BLACK[None])


@pytest.mark.parametrize("missing", ["Blocklist", "Qwen3Guard"])
def test_the_ingress_does_not_start_without_the_weights(package: Any, missing: str) -> None:
    def gated(*_: str) -> None:
        raise OSError("You are trying to access a gated repo.")

    setattr(package, missing, gated)
    with pytest.raises(ValueError, match="its check_prompt raised OSError: You are trying to access a gated repo"):
        PromptGuard(GuardSettings(import_path=PATH))


def test_an_empty_blocklist_permits_nothing(package: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(package.Blocklist, "blocklist_words", ())
    with pytest.raises(ValueError, match=r"nvidia/Cosmos-1\.0-Guardrail has no blocklist"):
        PromptGuard(GuardSettings(import_path=PATH))


def test_frames_need_the_weights_of_the_classifier_alone(package: Any) -> None:
    def gated(*_: str) -> None:
        raise OSError("gated")

    package.Blocklist = package.Qwen3Guard = gated
    FrameGuard(GuardSettings(import_path=PATH)).check(BLACK[None])
    package.VideoContentSafetyFilter = gated
    with pytest.raises(OSError, match="gated"):
        FrameGuard(GuardSettings(import_path=PATH)).check(BLACK[None])


def test_without_the_package_the_guard_cannot_be_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cosmos_guardrail", None)
    with pytest.raises(ValueError, match=r"its constructor raised ModuleNotFoundError: .*cosmos_guardrail"):
        PromptGuard(GuardSettings(import_path=PATH))
