"""Requests and responses: what a client may send, and what it gets."""

import hashlib
import json
import secrets
from typing import TYPE_CHECKING, Annotated, Any, Literal, NotRequired, TypedDict

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, BeforeValidator, Field, PlainValidator, WithJsonSchema

from cosmos3_models import GenerationParams, InvalidInput
from cosmos3_models.fields import CheckedModel, Number, Why, optional, unchecked, with_fields
from cosmos3_models.media.natural_size import natural_size
from cosmos3_models.params import MAX_SEED, GenerationDefaults
from cosmos3_models.references import CLEAN_BY_DEFAULT
from cosmos3_models.shapes import nearest_frame_counts, pixel_frames_needed
from serve.errors import invalid_input_refused
from serve.inputs.reference import FIELD, ONE_REFERENCE, SCHEMA, StoredVideo, read_reference
from serve.inputs.uploads import Upload

if TYPE_CHECKING:
    from cosmos3_models.media.reading import MediaInfo


def _number_text(value: object) -> object:
    """Accept a number: OpenAI's clients send seconds as text, others as a number."""
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


MAX_URL_CHARS = 2048
MAX_TIME = 253_402_300_799  # the end of the year 9999

MetadataKey = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.:-]{1,64}$")]
MetadataValue = Annotated[str, Field(max_length=512, pattern=r"^[^\x00]*$")]  # PostgreSQL stores no text with NUL
Metadata = Annotated[dict[MetadataKey, MetadataValue], Field(max_length=16)]
OF_METADATA = Why(
    "a video has up to 16 texts of up to 512 characters, under names of up to 64 letters, digits and _.:-"
)
Status = Literal["queued", "in_progress", "completed", "failed"]
Time = Annotated[int, Field(ge=0, le=MAX_TIME), Number]
OF_TIMES = Why("times are whole seconds since 1970, up to the year 9999")


ModelName = Annotated[
    str | None, Field(description="the served model's name, or nothing"), Why("a model is chosen by its name")
]
Size = Annotated[
    Annotated[str, Field(pattern=r"^[1-9][0-9]{0,4}x[1-9][0-9]{0,4}$", examples=["1280x720"])] | None,
    Field(description="WIDTHxHEIGHT in pixels, instead of width and height"),
    Why("a size is its width, an x and its height, in pixels"),
]


@with_fields(optional(GenerationParams))
class VideoRequest(CheckedModel):
    """The body of a request; an absent field is the served checkpoint's default, and an absent seed is drawn.

    The fields that follow these are those of ``cosmos3_models.GenerationParams``.
    """

    model: ModelName = None
    size: Size = None
    seconds: Annotated[
        Annotated[str, Field(pattern=r"^[0-9]{1,4}(\.[0-9]{1,6})?$"), BeforeValidator(_number_text)] | None,
        Field(description="length, rounded to the nearest 4k + 1 frames, instead of num_frames"),
        Why("a length is at most four digits of seconds, with up to six more behind a decimal point"),
    ] = None
    metadata: Annotated[
        Metadata | None,
        Field(description="up to 16 texts under names of your own, by which lists can be filtered"),
        OF_METADATA,
    ] = None
    input_reference: Annotated[
        Upload | StoredVideo | None,
        PlainValidator(read_reference),
        WithJsonSchema(SCHEMA),
        Field(description="the picture or clip that the video starts from"),
        Why(ONE_REFERENCE),
    ] = None
    webhook_url: Annotated[
        Annotated[str, Field(max_length=MAX_URL_CHARS)] | None,
        Field(description="where an event is sent when the job has ended"),
        Why("an event is sent to one URL"),
    ] = None

    def params(
        self, defaults: GenerationDefaults, media: "MediaInfo | None" = None, continues: bool = False
    ) -> GenerationParams:
        """The complete request over a checkpoint's defaults, with a seed drawn if none is given.

        Args:
            media: what the reference is. Without a size in the request, the video has its ratio, at about the default
                number of pixels.
            continues: whether ``seconds`` are those after the frames that the video shares with a clip.

        Raises:
            InvalidInput: fields that contradict each other, or a size or length that the model cannot make.
        """
        given = {name: value for name, value in self.given.items() if name in GenerationParams.model_fields}
        given.setdefault("seed", secrets.randbelow(MAX_SEED + 1))
        given |= self._picture_size(given.get("width"), given.get("height"))
        if media is not None and "width" not in given:
            usual = defaults.params(prompt="-")
            given["width"], given["height"] = natural_size(media.width, media.height, usual.width * usual.height)
        if self.seconds is not None:
            if "num_frames" in given:
                raise _conflict("seconds", self.seconds, "num_frames", given["num_frames"])
            fps = given.get("fps") or defaults.params(prompt="-").fps
            indexes = given.get("condition_frame_indexes_vision") or CLEAN_BY_DEFAULT["video"]
            shared = pixel_frames_needed(indexes) if continues else 0
            given["num_frames"] = _nearest_frame_count(float(self.seconds) * fps + shared)
        return defaults.params(**given)

    def record(self, params: GenerationParams) -> dict[str, Any]:
        """The request's fields of a record."""
        return described(params, self.seconds, self.metadata)

    @property
    def given(self) -> dict[str, Any]:
        """The fields that were given, by name, but for the reference."""
        return self.model_dump(exclude_none=True, exclude={FIELD})

    @property
    def fingerprint(self) -> str:
        """A hash of what was given, files included; a repeated request has the same one, whatever seed is drawn."""
        reference = self.input_reference
        named = reference.sha256 if isinstance(reference, Upload) else reference and reference.file_id
        given = self.given | ({FIELD: named} if named else {})
        return hashlib.sha256(json.dumps(given, sort_keys=True).encode()).hexdigest()

    def _picture_size(self, width: int | None, height: int | None) -> dict[str, int]:
        """The sides that ``size`` names, checked against those that were given."""
        if (width is None) != (height is None):
            one, got = ("width", width) if height is None else ("height", height)
            raise InvalidInput(one, got, "both width and height", "a size has two sides")
        if self.size is None:
            return {}
        sides = tuple(map(int, self.size.split("x")))
        if width is not None and (width, height) != sides:
            raise _conflict("size", self.size, "width and height", f"{width}x{height}")
        return {"width": sides[0], "height": sides[1]}


def read_request(fields: dict[str, Any]) -> VideoRequest:
    """The checked request of a body or of a handle call.

    Raises:
        InvalidRequest: a field is unknown, or its value is invalid.
    """
    with invalid_input_refused():
        return VideoRequest(**fields)


class ListQuery(CheckedModel):
    """Which videos a page lists, in order of arrival. A video must match all given filters."""

    after: Annotated[
        str | None,
        Field(description="id of the last video of the page before"),
        Why("a page begins after a video, which is named by its id"),
    ] = None
    limit: Annotated[int, Field(ge=1, le=100), Number, Why("a page holds 1 to 100 videos")] = 20
    order: Annotated[Literal["asc", "desc"], Why("videos are listed from the oldest or from the newest")] = "desc"
    status: Annotated[Status | None, Why("these are the states of a video")] = None
    created_after: Annotated[
        Time | None, Field(description="seconds since the epoch: at this time or later"), OF_TIMES
    ] = None
    created_before: Annotated[Time | None, Field(description="seconds since the epoch: before this time"), OF_TIMES] = (
        None
    )
    metadata: Annotated[Metadata, OF_METADATA] = Field(
        default={}, description="metadata[name]=text: this text under this name"
    )


class VideoError(BaseModel):
    """Why a job failed; ``code`` is for programs."""

    code: str
    message: str


class ReferenceRecord(BaseModel):
    """The picture or clip that a video starts from.

    Attributes:
        frames: 1 of a picture.
        file_id: the video of this server that it is, if the request named it.
        continued: whether the video begins with all frames of the clip.
    """

    kind: str
    width: int
    height: int
    frames: int
    file_id: str | None
    continued: bool


@with_fields(unchecked(GenerationParams))  # what is stored may be of another release
class Video(BaseModel):
    """A job or the video that it made: the fields of OpenAI's video object, this server's own, and the request's.

    Attributes:
        progress: percent.
        remixed_from_video_id: the video whose request this is with another prompt.
        revised_prompt: the caption that the video was made from in place of ``prompt``, if it asked for one.
        prompt_upsampling_error: why there is none although it asked.
        input_reference: the picture or clip that the video starts from.
        created_at, completed_at, expires_at: seconds since the epoch; record and files expire together.
        started_at: seconds since the epoch when the latest denoise started; None while the job is queued.
        seconds: the length that the request named; the exact length if it named none.
        duration_s: exact length of the video in seconds.
        stage: the stage that a running job is in, or ``prompt_upsampler`` of a queued one.
        step: completed steps of ``num_inference_steps``.
        queue_position: 1 is the next to start, 0 is not in the queue.
        eta_s: estimated seconds until the video is ready; None if there is no estimate.
        attempts: times that the denoise was started.
        stage_durations: seconds by stage, of a finished video. ``queue`` is all other time since ``created_at``, so
            the sum is the time from there to ``completed_at``.
    """

    id: str
    object: Literal["video"] = "video"
    model: str
    status: Status
    progress: int
    created_at: int
    started_at: int | None
    completed_at: int | None
    expires_at: int | None
    seconds: str
    duration_s: float
    size: str
    error: VideoError | None
    remixed_from_video_id: str | None
    revised_prompt: str | None
    prompt_upsampling_error: str | None
    input_reference: ReferenceRecord | None
    stage: str | None
    step: int
    queue_position: int
    eta_s: float | None
    attempts: int
    stage_durations: dict[str, float] | None
    request_id: str | None
    metadata: dict[str, str]


class VideoList(BaseModel):
    """A page of videos; ``last_id`` is the ``after`` of the next one."""

    object: Literal["list"] = "list"
    data: list[Video]
    first_id: str | None
    last_id: str | None
    has_more: bool


class VideoEstimate(BaseModel):
    """How long a request would take if it came now.

    Attributes:
        eta_s: estimated seconds until the video would be ready, including the wait in the queue; None if no video of
            a comparable size has finished yet.
        queue_position: 1 would be the next to start.
        relative_work: its operations as a multiple of those of a request with the checkpoint's defaults.
    """

    object: Literal["video.estimate"] = "video.estimate"
    eta_s: float | None
    queue_position: int
    relative_work: float


class VideoDeleted(BaseModel):
    """The confirmation that a video was deleted."""

    id: str
    object: Literal["video.deleted"] = "video.deleted"
    deleted: Literal[True] = True


class Progress(TypedDict):
    """A step or a stage of a running request."""

    type: Literal["progress"]
    stage: str
    step: int  # steps done
    steps: int  # of the stage
    elapsed_s: float  # since the request arrived


class Preview(TypedDict):
    """What the video of a running request will look like."""

    type: Literal["preview"]
    step: int  # steps done when it was estimated
    steps: int
    elapsed_s: float  # since the request arrived
    preview: bytes  # JPEG: moments of the video side by side


class FinishedVideo(TypedDict):
    """The last event of a stream, and what ``generate`` returns: an mp4, or the PNG of a video of one frame."""

    type: Literal["video"]
    mp4: NotRequired[bytes]
    image: NotRequired[bytes]  # PNG
    thumbnail: NotRequired[bytes]  # JPEG
    spritesheet: NotRequired[bytes]  # JPEG, of a video
    record: dict[str, Any]
    frames: NotRequired[NDArray[np.uint8]]  # RGB (frames, height, width, 3), if requested
    waveform: NotRequired[NDArray[np.float32] | None]  # (channels, samples), if requested


Event = Progress | Preview | FinishedVideo


class ModelCard(TypedDict):
    """The served model's defaults and limits."""

    id: str
    object: Literal["model"]
    created: int  # seconds since the epoch
    owned_by: str
    sound: bool  # whether it can make sound
    pictures: bool  # whether a video can start from a picture or clip
    prompt_upsampling: bool  # whether the server can rewrite prompts
    defaults: dict[str, Any]
    max_pixel_frames: int  # height x width x frames
    guide: dict[str, Any] | None  # how to prompt the model, if its folder has a PromptGuide
    allowed_approximations: list[str]  # the approximations that a request may ask for


def described(
    params: GenerationParams,
    seconds: str | None = None,
    metadata: dict[str, str] | None = None,
    frames_before: int = 0,
) -> dict[str, Any]:
    """The request's fields of a record: its parameters, and size and length in OpenAI's form.

    Args:
        seconds, metadata: as the request named them.
        frames_before: those of a continued clip, but for the ones that the new frames repeat.
    """
    duration_s = (frames_before + params.num_frames) / params.fps
    return {
        "size": f"{params.width}x{params.height}",
        "seconds": seconds or f"{duration_s:g}",
        "duration_s": round(duration_s, 6),
        "metadata": metadata or {},
        **params.model_dump(),
    }


def video_record(params: GenerationParams, model: str, timings: dict[str, float]) -> dict[str, Any]:
    """The record of a video that was made without a job.

    Args:
        model: the served model's name.
        timings: seconds by stage.
    """
    return {
        "object": "video",
        "model": model,
        "status": "completed",
        "progress": 100,
        **described(params),
        "stage_durations": {stage: round(seconds, 3) for stage, seconds in timings.items()},
    }


def _nearest_frame_count(frames: float) -> int:
    below, above = nearest_frame_counts(max(1, round(frames)))
    return below if frames - below < above - frames else above


def _conflict(one: str, got: object, other: str, expected: object) -> InvalidInput:
    return InvalidInput(one, got, f"what {other} says ({expected}), or only one of the two", "the fields contradict")
