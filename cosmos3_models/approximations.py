"""What a request may give up for speed, as fields of their own and as named profiles."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, Field, model_validator

from cosmos3_models.errors import InvalidInput
from cosmos3_models.fields import CheckedModel, Number, Why

ApproximationName = Literal["fp8_linears", "fp8_attention", "velocity_reuse", "guidance_reuse"]
APPROXIMATIONS: tuple[ApproximationName, ...] = get_args(ApproximationName)

Profile = Literal["exact", "fast"]
PROFILES: Mapping[str, Mapping[str, bool | int]] = {
    "exact": {"fp8_linears": False, "fp8_attention": False, "velocity_reuse": 0, "guidance_reuse": 0},
    "fast": {"velocity_reuse": 5, "guidance_reuse": 0},
}
"""The fields that each profile sets; it leaves the others as they are."""

FAST = " and ".join(f"{name} {value}" for name, value in PROFILES["fast"].items())


def with_profile(given: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of a request or of defaults with what their profile sets, if it names a known one; given fields win."""
    profile = given.get("profile")
    sets = PROFILES.get(profile, {}) if isinstance(profile, str) else {}
    return {**given, **{name: value for name, value in sets.items() if given.get(name) is None}}


def _check_reuse(value: int) -> int:
    if value == 1:
        raise ValueError("0, or 2 and more")
    return value


class Approximation(CheckedModel):
    """The approximations by which the denoiser is faster; none by default. They can be combined freely.

    Of a profile and the fields that are given beside it, the fields win.
    """

    fp8_linears: Annotated[
        bool,
        Field(description="compute the generation tower's matrix products in fp8; not exact, needs Hopper or newer"),
        Why("matrix products are either in fp8 or not"),
    ] = False
    fp8_attention: Annotated[
        bool,
        Field(description="compute attention in fp8; not exact, needs Hopper or newer and heads of 128 channels"),
        Why("attention is either in fp8 or not"),
    ] = False
    velocity_reuse: Annotated[
        int,
        Field(ge=0, le=5, description="compute steps up to so many apart, and extrapolate the others; 0: exact"),
        Number,
        AfterValidator(_check_reuse),
        Why("computed steps are 2 to 5 steps apart at most, and 0 computes every step"),
    ] = 0
    guidance_reuse: Annotated[
        int,
        Field(ge=0, le=4, description="run the negative prompt in every 2nd to 4th of the computed steps; 0: exact"),
        Number,
        AfterValidator(_check_reuse),
        Why("the negative prompt runs in one of 2 to 4 computed steps, and 0 runs it in every one"),
    ] = 0
    profile: Annotated[
        Profile | None,
        Field(description=f"exact: no approximation; fast: {FAST}; other fields win"),
        Why("these are the profiles there are"),
    ] = None

    @model_validator(mode="before")
    @classmethod
    def _expand_profile(cls, given: Any) -> Any:
        return with_profile(given) if isinstance(given, dict) else given

    @property
    def label(self) -> str:
        """For logs: ``exact``, or the approximations in use."""
        used = [] if self.arithmetic == "exact" else [self.arithmetic]
        for name, every in (("velocity", self.velocity_reuse), ("guidance", self.guidance_reuse)):
            used += [f"{name} reuse {every}"] if every else []
        return ", ".join(used) or "exact"

    @property
    def arithmetic(self) -> str:
        """How a forward pass computes: ``exact``, or what is in fp8. It decides how long a pass takes."""
        parts = [("fp8 linears", self.fp8_linears), ("fp8 attention", self.fp8_attention)]
        return ", ".join(name for name, chosen in parts if chosen) or "exact"


EXACTLY = Approximation()


def check_device(approximation: Approximation, device: str) -> None:
    """Raise ``InvalidInput`` for an approximation that a CPU cannot compute. Only its process knows a GPU's limits."""
    for field in ("fp8_linears", "fp8_attention"):
        if device == "cpu" and getattr(approximation, field):
            raise InvalidInput(field, True, "false", "the model runs on CPUs here, which have no fp8 tensor cores")
