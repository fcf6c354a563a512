"""What the quality is measured on: prompts of the world, and ways to sample them that differ in one thing each."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cosmos3_models import GenerationParams
from cosmos3_models.approximations import APPROXIMATIONS, PROFILES, Approximation
from cosmos3_models.params import GenerationDefaults, SigmaSchedule
from training.captions import Stated, states, write_caption
from training.labels import Part, draw_labels

DEFAULT = "default"
BOTH_PARTS = (DEFAULT, "guidance")  # groups of cases that are measured beyond the first part of the world


@dataclass(frozen=True)
class Prompt:
    """A caption that states every attribute, and what it states."""

    text: str
    stated: list[Stated]


@dataclass(frozen=True)
class Case:
    """One way to sample.

    Attributes:
        group: what is changed: ``default``, ``guidance``, ``schedule``, ``steps``, ``reuse`` or ``fp8``.
        name: of the case, for people.
        settings: fields of ``GenerationParams``.
    """

    group: str
    name: str
    settings: dict[str, Any]


def draw_prompts(part: Part, count: int, seed: int = 0) -> list[Prompt]:
    """Prompts of one part of the world; the first ones are the same for any ``count``."""
    random = [np.random.default_rng([seed, index]) for index in range(count)]
    labels = [draw_labels(generator, 1, part) for generator in random]
    return [
        Prompt(
            write_caption(scene, 0, generator, full=True),
            states(scene, 0),
        )
        for scene, generator in zip(labels, random, strict=True)
    ]


def cases(
    defaults: GenerationDefaults,
    *,
    guidance: Sequence[float] = (),
    schedules: Sequence[SigmaSchedule] = (),
    steps: Sequence[int] = (),
    reuse: Sequence[tuple[int, int]] = (),
    fp8: bool = False,
) -> list[Case]:
    """The exact defaults first, then each with one thing changed; what changes nothing is left out.

    Args:
        reuse: pairs of ``velocity_reuse`` and ``guidance_reuse``.
    """
    base = _settings(defaults.params(prompt="-", **Approximation().model_dump()))
    changes: list[tuple[str, str, dict[str, Any]]] = [
        *(("guidance", f"guidance {scale:g}", {"guidance_scale": scale}) for scale in guidance),
        *(("schedule", name, {"sigma_schedule": name}) for name in schedules),
        *(("steps", f"{count} steps", {"num_inference_steps": count}) for count in steps),
        *(_approximation("reuse", **_reuse(*one)) for one in reuse),
        *(_fp8() if fp8 else ()),
    ]
    changed = [Case(group, name, base | settings) for group, name, settings in changes]
    return [Case(DEFAULT, DEFAULT, base), *(case for case in changed if case.settings != base)]


def params_of(defaults: GenerationDefaults, case: Case, prompt: Prompt, seed: int) -> GenerationParams:
    """The request for one prompt."""
    return defaults.params(prompt=prompt.text, generate_sound=True, seed=seed, **case.settings)


def pair(text: str) -> tuple[int, int]:
    """``velocity_reuse`` and ``guidance_reuse``, as command lines write them: 5,0."""
    velocity, guidance = map(int, text.split(","))
    return velocity, guidance


def _fp8() -> Iterator[tuple[str, str, dict[str, Any]]]:
    both: dict[str, Any] = {"fp8_linears": True, "fp8_attention": True}
    for given_up in ({"fp8_linears": True}, {"fp8_attention": True}, both, {**both, **PROFILES["fast"]}):
        yield _approximation("fp8", **given_up)


def _reuse(velocity: int, guidance: int) -> dict[str, Any]:
    return {"velocity_reuse": velocity, "guidance_reuse": guidance}


def _approximation(group: str, **given_up: Any) -> tuple[str, str, dict[str, Any]]:
    return group, Approximation(**given_up).label, given_up


def _settings(params: GenerationParams) -> dict[str, Any]:
    """What cases differ in."""
    names = ("guidance_scale", "sigma_schedule", "num_inference_steps", *APPROXIMATIONS)
    return {name: getattr(params, name) for name in names}
