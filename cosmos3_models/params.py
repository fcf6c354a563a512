"""What a caller may ask for, with every limit in one place."""

import re
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self, get_args

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from cosmos3_models import shapes
from cosmos3_models.errors import InvalidInput

SigmaSchedule = Literal["flow", "phyai", "karras", "checkpoint"]
ApproximationName = Literal["fp8_linears", "fp8_attention", "step_cache"]
APPROXIMATIONS: tuple[ApproximationName, ...] = get_args(ApproximationName)

MAX_PROMPT_CHARS = 32_768
MAX_SIDE = 4096
MAX_FRAMES = 1201
MAX_STEPS = 200
MAX_SEED = 2**32 - 1

# The reason behind each field's rule, for the error text.
WHY = {
    "prompt": f"the prompt is text of 1 to {MAX_PROMPT_CHARS} characters that describes the video",
    "negative_prompt": f"it is text of at most {MAX_PROMPT_CHARS} characters that describes what to avoid",
    "num_frames": f"a video has 1 to {MAX_FRAMES} frames",
    "height": f"a picture is {shapes.PIXELS_PER_LATENT} to {MAX_SIDE} pixels high",
    "width": f"a picture is {shapes.PIXELS_PER_LATENT} to {MAX_SIDE} pixels wide",
    "fps": "the model knows 1 to 60 frames per second",
    "num_inference_steps": f"the sampler takes 1 to {MAX_STEPS} steps",
    "guidance_scale": "1 switches guidance off and more than 20 only saturates the picture",
    "flow_shift": "the shift divides the noise schedule, so it is positive and finite",
    "seed": "the noise generator takes an unsigned 32-bit seed",
    "generate_sound": "sound is either generated or not",
    "append_metadata": "the sentences about length and size are either appended or not",
    "sigma_schedule": "these are the noise schedules there are",
    "fp8_linears": "matrix products are either in fp8 or not",
    "fp8_attention": "attention is either in fp8 or not",
    "step_cache": "the threshold is a share of a change, and 0 switches the cache off",
    "allowed": "these are the approximations there are",
}


def _check_text(value: str) -> str:
    if not value.strip():
        raise InvalidInput("prompt", value, "some text", WHY["prompt"])
    return value


def _check_frames(value: int) -> int:
    below, above = shapes.nearest_frame_counts(value)
    if value not in (below, above):
        raise InvalidInput(
            "num_frames",
            value,
            f"4k + 1 frames (nearest: {below} or {above})",
            "the video autoencoder holds the first frame alone and then four to a latent frame",
        )
    return value


def _check_side(value: int) -> int:
    unit = shapes.PIXELS_PER_LATENT
    if value % unit:
        below, above = value // unit * unit, (value // unit + 1) * unit
        raise InvalidInput(
            "size",
            value,
            f"a multiple of {unit} (nearest: {below} or {above})",
            f"one latent covers {unit} x {unit} pixels",
        )
    return value


def _plain_number(value: object) -> object:
    """Refuse what pydantic takes for a number and nobody writes as one: true, "1_000", " 5 ", "nan"."""
    if isinstance(value, bool) or (isinstance(value, str) and not NUMBER_TEXT.fullmatch(value)):
        raise ValueError("a number")
    return value


NUMBER_TEXT = re.compile(r"-?[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]+)?")
Number = BeforeValidator(_plain_number)
Text = Annotated[str, Field(max_length=MAX_PROMPT_CHARS)]
Prompt = Annotated[Text, AfterValidator(_check_text)]
Frames = Annotated[int, Number, Field(ge=1, le=MAX_FRAMES), AfterValidator(_check_frames)]
Side = Annotated[int, Number, Field(ge=shapes.PIXELS_PER_LATENT, le=MAX_SIDE), AfterValidator(_check_side)]
FrameRate = Annotated[float, Number, Field(ge=1, le=60)]
Steps = Annotated[int, Number, Field(ge=1, le=MAX_STEPS)]
Guidance = Annotated[float, Number, Field(ge=1, le=20)]
Shift = Annotated[float, Number, Field(ge=0.01, le=100)]
CacheThreshold = Annotated[float, Number, Field(ge=0, le=1)]
Seed = Annotated[int, Number, Field(ge=0, le=MAX_SEED)]


class CheckedModel(BaseModel):
    """A frozen model without unknown fields whose constructor raises ``InvalidInput``.

    Attributes:
        reasons: why each field has its rule, for the error text. A class with a field that is not in it is an error.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    reasons: ClassVar[Mapping[str, str]] = WHY

    @classmethod
    def __pydantic_init_subclass__(cls, **_: Any) -> None:
        if missing := set(cls.model_fields) - set(cls.reasons):
            raise TypeError(f"{cls.__name__}.reasons: got none for {sorted(missing)}, expected one for each field")

    def __init__(self, /, **fields: Any) -> None:  # the slash, so that a client's field may be called self
        try:
            super().__init__(**fields)
        except ValidationError as error:
            raise _invalid_input(error.errors()[0], type(self)) from None


class Approximation(CheckedModel):
    """What a request lets the denoiser give up for speed; by default nothing. The parts compose freely.

    Attributes:
        fp8_linears: matrix products of the generation tower in fp8. Hopper or newer.
        fp8_attention: its attention in fp8. Hopper or newer, heads of 128 channels.
        step_cache: a step reuses the last one's work behind the first layer where that layer's change has moved by
            less than this share of itself; 0 never does.
    """

    fp8_linears: bool = False
    fp8_attention: bool = False
    step_cache: CacheThreshold = 0.0

    @property
    def label(self) -> str:
        """For logs: ``exact``, or what is given up."""
        parts = [("fp8 linears", self.fp8_linears), ("fp8 attention", self.fp8_attention)]
        given_up = [name for name, chosen in parts if chosen]
        if self.step_cache:
            given_up.append(f"step cache {self.step_cache:g}")
        return ", ".join(given_up) or "exact"


class GenerationParams(Approximation):
    """One video to make, and what may be given up for speed. Defaults are NVIDIA's for Cosmos3-Nano, and exact.

    Attributes:
        prompt: what the video shows; plain text or a JSON object of the model's structured captions.
        negative_prompt: what to avoid. ``None`` is the default structured one, ``""`` an empty one.
        num_frames: 4k + 1.
        height, width: pixels, multiples of 16 (of 32 to waste no tokens).
        fps: frames per second, 1 to 60; also paces the temporal positions.
        num_inference_steps: steps of the sampler.
        guidance_scale: weight of the prompt against the negative one; 1 runs the prompt alone.
        flow_shift: how much the ``flow`` and ``phyai`` schedules favour high noise.
        sigma_schedule: ``flow`` (official), ``phyai``, ``karras`` or ``checkpoint`` (scheduler_config.json).
        seed: fixes the noise, and with it the video.
        generate_sound: also make a synchronised stereo sound track.
        append_metadata: tell the model length, frame rate and size at the end of the prompt.

    Raises:
        InvalidInput: naming the field, what came, what was expected and why.
    """

    prompt: Prompt
    negative_prompt: Text | None = None
    num_frames: Frames = 189
    height: Side = 720
    width: Side = 1280
    fps: FrameRate = 24.0
    num_inference_steps: Steps = 35
    guidance_scale: Guidance = 6.0
    flow_shift: Shift = 10.0
    sigma_schedule: SigmaSchedule = "flow"
    seed: Seed = 42
    generate_sound: bool = False
    append_metadata: bool = True

    @property
    def pixel_frames(self) -> int:
        """The size of the request: height x width x frames."""
        return self.height * self.width * self.num_frames

    @property
    def grid(self) -> shapes.LatentGrid:
        """That of its latents."""
        return shapes.LatentGrid.of_video(self.num_frames, self.height, self.width)


class GenerationDefaults(BaseModel):
    """A checkpoint's own defaults (``generation_config.json``), in the names of ``GenerationParams``.

    Absent fields keep the defaults of ``GenerationParams``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    num_frames: Frames | None = None
    height: Side | None = None
    width: Side | None = None
    fps: FrameRate | None = None
    num_inference_steps: Steps | None = None
    guidance_scale: Guidance | None = None
    flow_shift: Shift | None = None
    sigma_schedule: SigmaSchedule | None = None
    fp8_linears: bool | None = None
    fp8_attention: bool | None = None
    step_cache: CacheThreshold | None = None

    @property
    def approximation(self) -> Approximation:
        return Approximation(**self.model_dump(include=set[str](APPROXIMATIONS), exclude_none=True))

    @model_validator(mode="after")
    def _both_sides(self) -> Self:
        if (self.height is None) != (self.width is None):
            raise ValueError("height and width come together")
        return self

    def params(self, **given: Any) -> GenerationParams:
        """``given`` over these defaults over those of ``GenerationParams``."""
        return GenerationParams(**(self.model_dump(exclude_none=True) | given))


class ApproximationPolicy(Approximation):
    """What a server's requests give up for speed unless they say otherwise, and what they may give up.

    Fields that are not given are the checkpoint's defaults. What is not allowed is off whatever the checkpoint says.

    Attributes:
        allowed: the approximations that a request may ask for.
    """

    allowed: tuple[ApproximationName, ...] = APPROXIMATIONS

    @model_validator(mode="after")
    def _keep_to_allowed(self) -> Self:
        self.check(self)
        return self

    def over(self, defaults: GenerationDefaults) -> GenerationDefaults:
        """A checkpoint's defaults with those of this server."""
        forbidden = Approximation().model_dump(exclude=set[str](self.allowed))
        return defaults.model_copy(update=self.model_dump(exclude_unset=True, exclude={"allowed"}) | forbidden)

    def check(self, asked: Approximation) -> None:
        """Raise ``InvalidInput`` for what is not allowed."""
        for name in APPROXIMATIONS:
            got, off = getattr(asked, name), getattr(EXACTLY, name)
            if name not in self.allowed and got != off:
                raise InvalidInput(name, got, str(off).lower(), "this server's operator does not allow it")


EXACTLY = Approximation()


def check_pixel_frames(params: GenerationParams, limit: int) -> None:
    """Raise ``InvalidInput`` if the video is larger than ``limit`` = height x width x frames."""
    if params.pixel_frames > limit:
        raise InvalidInput(
            "size",
            f"{params.width}x{params.height} x {params.num_frames} frames = {params.pixel_frames}",
            f"at most {limit} pixels over all frames",
            "this server does not start what it has no memory or time to finish",
        )


def check_device(approximation: Approximation, device: str) -> None:
    """Raise ``InvalidInput`` for what no ``cpu`` can compute. A GPU's own limits are known to its process alone."""
    for field in ("fp8_linears", "fp8_attention"):
        if device == "cpu" and getattr(approximation, field):
            raise InvalidInput(field, True, "false", "the model runs on CPUs here, which have no fp8 tensor cores")


# How pydantic's messages begin, and how a noun in their place does.
STARTS = (
    ("Input should be ", ""),
    ("Value error, ", ""),
    ("String should match pattern ", "text to match pattern "),
    ("String should have ", "text of "),
    ("Dictionary should have ", ""),
)


def expected_by_pydantic(message: str) -> str:
    """What pydantic would have accepted, as a noun."""
    for start, noun in STARTS:
        if message.startswith(start):
            return noun + message.removeprefix(start)
    return message


def _invalid_input(error: ErrorDetails, model: type[CheckedModel]) -> InvalidInput:
    """The first thing that pydantic found, in our one form."""
    original = error.get("ctx", {}).get("error")
    param = str(error["loc"][0]) if error["loc"] else "request"
    if isinstance(original, InvalidInput):
        named = param if original.param == "size" else original.param
        return InvalidInput(named, original.got, original.expected, original.why)
    if error["type"] == "extra_forbidden":
        known = ", ".join(model.model_fields)
        return InvalidInput(param, error["input"], f"one of the fields {known}", "this field is unknown")
    why = model.reasons[param]
    if error["type"] == "missing":
        return InvalidInput(param, None, "a value", why)
    return InvalidInput(param, error["input"], expected_by_pydantic(error["msg"]), why)
