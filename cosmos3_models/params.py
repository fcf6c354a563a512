"""The parameters of a video: every field with its type, limits, default, reason and description.

Everything else that knows a field derives it from here (``fields.py``) or is compared with it by a test: checkpoint
defaults, HTTP requests and records, the command line, the page's form and the documentation.
"""

import re
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    WithJsonSchema,
    model_validator,
)

from cosmos3_models import shapes
from cosmos3_models.approximations import APPROXIMATIONS, EXACTLY, Approximation, ApproximationName, with_profile
from cosmos3_models.errors import InvalidInput
from cosmos3_models.fields import Number, Why, optional, with_fields

SigmaSchedule = Literal["flow", "phyai", "karras", "checkpoint"]

MAX_PROMPT_CHARS = 32_768
MAX_SIDE = 4096
MAX_FRAMES = 1201
MAX_STEPS = 200
MAX_SEED = 2**32 - 1
MAX_PREVIEWS = 8
LAST_LATENT = shapes.LatentGrid.of_video(MAX_FRAMES, MAX_SIDE, MAX_SIDE).frames - 1
INDEXES_TEXT = re.compile(r"[0-9]{1,3}(,[0-9]{1,3})*", re.ASCII)


def _check_text(value: str) -> str:
    if not value.strip():
        raise InvalidInput("prompt", value, "some text", GenerationParams.reasons["prompt"])
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


def _listed(value: object) -> object:
    """Accept a single index and, for forms and command lines, text such as "0,1"."""
    if isinstance(value, str) and INDEXES_TEXT.fullmatch(value):
        return [int(index) for index in value.split(",")]
    if isinstance(value, int) and not isinstance(value, bool):
        return [value]
    if not isinstance(value, list | tuple) or not 0 < len(value) <= LAST_LATENT + 1:
        raise ValueError(f"1 to {LAST_LATENT + 1} numbers of latent frames, such as 0,1")
    return value


def _in_order(indexes: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(sorted(set(indexes)))


Text = Annotated[str, Field(max_length=MAX_PROMPT_CHARS)]
LatentIndexes = Annotated[
    tuple[Annotated[int, Field(ge=0, le=LAST_LATENT), Number], ...],
    BeforeValidator(_listed),
    AfterValidator(_in_order),
    PlainSerializer(list),  # what is stored as JSON and read back is the same value
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": LAST_LATENT}, "minItems": 1},
                {"type": "integer", "minimum": 0, "maximum": LAST_LATENT},
                {"type": "string", "pattern": f"^{INDEXES_TEXT.pattern}$"},
            ]
        },
        mode="validation",
    ),
]
Upsampling = Annotated[
    bool | Literal["required"],
    WithJsonSchema({"type": ["boolean", "string"], "enum": [False, True, "required"]}),
]
Side = Annotated[int, Field(ge=shapes.PIXELS_PER_LATENT, le=MAX_SIDE), Number, AfterValidator(_check_side)]


class GenerationParams(Approximation):
    """One video to make; each field's description says what it is. Defaults are NVIDIA's for Cosmos3-Nano, and exact.

    Raises:
        InvalidInput: names the field, the value, what was expected and why.
    """

    prompt: Annotated[
        Text,
        Field(description="what the video shows: text, or a JSON object of the model's structured captions"),
        AfterValidator(_check_text),
        Why(f"the prompt is text of 1 to {MAX_PROMPT_CHARS} characters that describes the video"),
    ]
    negative_prompt: Annotated[
        Text | None,
        Field(description='what to avoid; absent: a structured default, of an image nothing; "": nothing'),
        Why(f"it is text of at most {MAX_PROMPT_CHARS} characters that describes what to avoid"),
    ] = None
    num_frames: Annotated[
        int,
        Field(ge=1, le=MAX_FRAMES, description="number of frames, 4k + 1"),
        Number,
        AfterValidator(_check_frames),
        Why(f"a video has 1 to {MAX_FRAMES} frames"),
    ] = 189
    height: Annotated[
        Side,
        Field(description="height in pixels, a multiple of 16"),
        Why(f"a picture is {shapes.PIXELS_PER_LATENT} to {MAX_SIDE} pixels high"),
    ] = 720
    width: Annotated[
        Side,
        Field(description="width in pixels, a multiple of 16"),
        Why(f"a picture is {shapes.PIXELS_PER_LATENT} to {MAX_SIDE} pixels wide"),
    ] = 1280
    fps: Annotated[
        float,
        Field(ge=1, le=60, description="frames per second"),
        Number,
        Why("the model knows 1 to 60 frames per second"),
    ] = 24.0
    num_inference_steps: Annotated[
        int,
        Field(ge=1, le=MAX_STEPS, description="steps of the sampler"),
        Number,
        Why(f"the sampler takes 1 to {MAX_STEPS} steps"),
    ] = 35
    guidance_scale: Annotated[
        float,
        Field(ge=1, le=20, description="weight of the prompt against the negative prompt; 1 switches guidance off"),
        Number,
        Why("1 switches guidance off and more than 20 only saturates the picture"),
    ] = 6.0
    flow_shift: Annotated[
        float,
        Field(ge=0.01, le=100, description="how much the schedules flow and phyai favour high noise"),
        Number,
        Why("the shift divides the noise schedule, so it is positive and finite"),
    ] = 10.0
    sigma_schedule: Annotated[
        SigmaSchedule,
        Field(description="noise schedule: NVIDIA's (flow), or the one in scheduler_config.json (checkpoint)"),
        Why("these are the noise schedules there are"),
    ] = "flow"
    seed: Annotated[
        int,
        Field(ge=0, le=MAX_SEED, description="fixes the noise, and with it the video"),
        Number,
        Why("the noise generator takes an unsigned 32-bit seed"),
    ] = 42
    generate_sound: Annotated[
        bool, Field(description="make a stereo sound track as well"), Why("sound is either generated or not")
    ] = False
    append_metadata: Annotated[
        bool,
        Field(description="append length, frame rate and size to the prompt"),
        Why("the sentences about length and size are either appended or not"),
    ] = True
    condition_frame_indexes_vision: Annotated[
        LatentIndexes | None,
        Field(description="latent frames taken from the picture or clip, such as 0,1; absent: 0, of a clip 0,1"),
        Why("latent frames are counted from 0, and the first is one frame of the video and every other one four"),
    ] = None
    condition_video_keep: Annotated[
        Literal["first", "last"],
        Field(description="which end of a longer clip the video begins with"),
        Why("a clip is used from its first frame on, or up to its last one"),
    ] = "first"

    previews: Annotated[
        int,
        Field(ge=0, le=MAX_PREVIEWS, description="pictures of the unfinished video, spread evenly over its steps"),
        Number,
        Why(f"a video shows up to {MAX_PREVIEWS} pictures of itself while it is made"),
    ] = 0

    prompt_upsampling: Annotated[
        Upsampling,
        Field(description="let the server rewrite the prompt as a structured caption; required: or make no video"),
        Why("the prompt is rewritten or not, and if that fails, the request goes on unless it is required"),
    ] = False

    @model_validator(mode="after")
    def _sound_has_length(self) -> Self:
        if self.generate_sound and self.num_frames == 1:
            raise InvalidInput("generate_sound", True, "false", "a video of one frame is an image, which has no sound")
        return self

    @model_validator(mode="after")
    def _within_the_video(self) -> Self:
        indexes = self.condition_frame_indexes_vision
        if indexes is not None and indexes[-1] >= self.grid.frames:
            expected = f"numbers below {self.grid.frames}"
            why = f"{self.num_frames} frames are {self.grid.frames} latent frames"
            raise InvalidInput("condition_frame_indexes_vision", list(indexes), expected, why)
        return self

    @property
    def pixel_frames(self) -> int:
        """The size of the request: height x width x frames."""
        return self.height * self.width * self.num_frames

    @property
    def grid(self) -> shapes.LatentGrid:
        """The grid of its video latents."""
        return shapes.LatentGrid.of_video(self.num_frames, self.height, self.width)


OF_A_REQUEST = (
    "prompt",
    "negative_prompt",
    "seed",
    "generate_sound",
    "append_metadata",
    "condition_frame_indexes_vision",
    "condition_video_keep",
    "previews",
    "prompt_upsampling",
)
"""Fields for which no checkpoint has a default of its own."""


@with_fields(optional(GenerationParams, without=OF_A_REQUEST))
class GenerationDefaults(BaseModel):
    """A checkpoint's own defaults (``generation_config.json``), in the names of ``GenerationParams``.

    Absent fields keep the defaults of ``GenerationParams``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _expand_profile(cls, given: Any) -> Any:
        return with_profile(given) if isinstance(given, dict) else given

    @property
    def approximation(self) -> Approximation:
        """The approximations that the checkpoint uses by default."""
        return Approximation(**self.model_dump(include=set[str](APPROXIMATIONS), exclude_none=True))

    @model_validator(mode="after")
    def _both_sides(self) -> Self:
        if len({"height", "width"} & set(self.model_dump(exclude_none=True))) == 1:
            raise ValueError("height and width come together")
        return self

    def params(self, **given: Any) -> GenerationParams:
        """``given`` over these defaults over those of ``GenerationParams``; a given profile is over all defaults.

        Raises:
            InvalidInput: a given value is invalid.
        """
        return GenerationParams(**(self.model_dump(exclude_none=True) | with_profile(given)))


class ApproximationPolicy(Approximation):
    """The approximations that a server uses by default, and those that its requests may ask for.

    A field that is not given has the checkpoint's default. An approximation that is not allowed is off, whatever the
    checkpoint says.
    """

    allowed: Annotated[
        tuple[ApproximationName, ...],
        Field(description="the approximations that a request may ask for"),
        Why("these are the approximations there are"),
    ] = APPROXIMATIONS

    @model_validator(mode="after")
    def _keep_to_allowed(self) -> Self:
        self.check(self)
        return self

    def over(self, defaults: GenerationDefaults) -> GenerationDefaults:
        """A checkpoint's defaults, overridden by this server's."""
        forbidden = {name: getattr(EXACTLY, name) for name in APPROXIMATIONS if name not in self.allowed}
        return defaults.model_copy(update=self.model_dump(exclude_unset=True, exclude={"allowed"}) | forbidden)

    def check(self, asked: Approximation) -> None:
        """Raise ``InvalidInput`` for an approximation that is not allowed."""
        for name in APPROXIMATIONS:
            got, off = getattr(asked, name), getattr(EXACTLY, name)
            if name not in self.allowed and got != off:
                raise InvalidInput(name, got, str(off).lower(), "this server's operator does not allow it")


def check_pixel_frames(params: GenerationParams, limit: int) -> None:
    """Raise ``InvalidInput`` if the video is larger than ``limit`` = height x width x frames."""
    if params.pixel_frames > limit:
        raise InvalidInput(
            "size",
            f"{params.width}x{params.height} x {params.num_frames} frames = {params.pixel_frames}",
            f"at most {limit} pixels over all frames",
            "this server does not start a video that it has no memory or time to finish",
        )
