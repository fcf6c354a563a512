"""What a client may send and what it gets."""

import hashlib
import json
import secrets
from typing import Annotated, Any, ClassVar, Literal, NotRequired, TypedDict

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, BeforeValidator, Field

from cosmos3_models import GenerationParams, InvalidInput
from cosmos3_models.params import (
    MAX_SEED,
    WHY,
    CacheThreshold,
    CheckedModel,
    FrameRate,
    Frames,
    GenerationDefaults,
    Guidance,
    Number,
    Prompt,
    Seed,
    Shift,
    Side,
    SigmaSchedule,
    Steps,
    Text,
)
from cosmos3_models.shapes import nearest_frame_counts
from serve.errors import invalid_input_refused


def _number_text(value: object) -> object:
    """OpenAI's clients send seconds as text, others as a number."""
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


MAX_TIME = 253_402_300_799  # the end of the year 9999

MetadataKey = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.:-]{1,64}$")]
MetadataValue = Annotated[str, Field(max_length=512, pattern=r"^[^\x00]*$")]  # PostgreSQL compares no text with NUL
Metadata = Annotated[dict[MetadataKey, MetadataValue], Field(max_length=16)]
Status = Literal["queued", "in_progress", "completed", "failed"]
Time = Annotated[int, Number, Field(ge=0, le=MAX_TIME)]

OF_LISTS = {
    "after": "a page begins after a video, which is named by its id",
    "limit": "a page holds 1 to 100 videos",
    "order": "videos are listed from the oldest or from the newest",
    "status": "these are the states of a video",
    "created_after": "times are whole seconds since 1970, up to the year 9999",
    "created_before": "times are whole seconds since 1970, up to the year 9999",
    "metadata": "a video has up to 16 texts of up to 512 characters, under names of up to 64 letters, digits and _.:-",
}
OF_REQUESTS = WHY | {
    "model": "a model is chosen by its name",
    "size": "a size is its width, an x and its height, in pixels",
    "seconds": "a length is at most four digits of seconds, with up to six more behind a decimal point",
    "metadata": OF_LISTS["metadata"],
}


class VideoRequest(CheckedModel):
    """The body of a request; an absent field is the served checkpoint's default.

    Attributes:
        prompt: what the video shows.
        model: the served model's name, or nothing.
        size: ``"WIDTHxHEIGHT"`` in pixels; or ``width`` and ``height``.
        seconds: length, rounded to the nearest 4k + 1 frames; or ``num_frames``.
        seed: drawn if it is absent.
        metadata: up to 16 texts under names of the client's own, by which lists can be filtered.

    The other fields are those of ``cosmos3_models.GenerationParams``.
    """

    reasons: ClassVar = OF_REQUESTS

    prompt: Prompt
    model: str | None = None
    size: Annotated[str, Field(pattern=r"^[1-9][0-9]{0,4}x[1-9][0-9]{0,4}$", examples=["1280x720"])] | None = None
    width: Side | None = None
    height: Side | None = None
    seconds: Annotated[str, BeforeValidator(_number_text), Field(pattern=r"^[0-9]{1,4}(\.[0-9]{1,6})?$")] | None = None
    num_frames: Frames | None = None
    fps: FrameRate | None = None
    negative_prompt: Text | None = None
    num_inference_steps: Steps | None = None
    guidance_scale: Guidance | None = None
    flow_shift: Shift | None = None
    sigma_schedule: SigmaSchedule | None = None
    seed: Seed | None = None
    generate_sound: bool | None = None
    append_metadata: bool | None = None
    fp8_linears: bool | None = None
    fp8_attention: bool | None = None
    step_cache: CacheThreshold | None = None
    metadata: Metadata | None = None

    def params(self, defaults: GenerationDefaults) -> GenerationParams:
        """The complete request over a checkpoint's defaults, with a seed drawn if none is given.

        Raises:
            InvalidInput: fields that contradict each other, or a size or length that the model cannot make.
        """
        given = self.model_dump(exclude_none=True, exclude={"model", "size", "seconds", "metadata"})
        given.setdefault("seed", secrets.randbelow(MAX_SEED + 1))
        given |= self._picture_size()
        if self.seconds is not None:
            if self.num_frames is not None:
                raise _conflict("seconds", self.seconds, "num_frames", self.num_frames)
            fps = self.fps or defaults.params(prompt=self.prompt).fps
            given["num_frames"] = _nearest_frame_count(float(self.seconds) * fps)
        return defaults.params(**given)

    def record(self, params: GenerationParams) -> dict[str, Any]:
        """The fields of a record that tell what was asked for."""
        return described(params, self.seconds, self.metadata)

    @property
    def fingerprint(self) -> str:
        """A hash of the fields that were given; a repeated request has the same one, whatever seed is drawn."""
        fields = json.dumps(self.model_dump(exclude_none=True), sort_keys=True)
        return hashlib.sha256(fields.encode()).hexdigest()

    def _picture_size(self) -> dict[str, int]:
        if (self.width is None) != (self.height is None):
            one = "width" if self.height is None else "height"
            raise InvalidInput(one, getattr(self, one), "both width and height", "a size has two sides")
        if self.size is None:
            return {}
        width, height = map(int, self.size.split("x"))
        if self.width is not None and (self.width, self.height) != (width, height):
            raise _conflict("size", self.size, "width and height", f"{self.width}x{self.height}")
        return {"width": width, "height": height}


def read_request(fields: dict[str, Any]) -> VideoRequest:
    """The checked request of a body or of a handle call.

    Raises:
        InvalidRequest: a field is unknown, or its value is invalid.
    """
    with invalid_input_refused():
        return VideoRequest(**fields)


class ListQuery(CheckedModel):
    """Which videos a page shows, in order of arrival. All filters that are given must match."""

    reasons: ClassVar = OF_LISTS

    after: Annotated[str | None, Field(description="id of the last video of the page before")] = None
    limit: Annotated[int, Number, Field(ge=1, le=100)] = 20
    order: Literal["asc", "desc"] = "desc"
    status: Status | None = None
    created_after: Annotated[Time | None, Field(description="seconds since the epoch: at this time or later")] = None
    created_before: Annotated[Time | None, Field(description="seconds since the epoch: before this time")] = None
    metadata: Metadata = Field(default={}, description="metadata[name]=text: this text under this name")


class VideoError(BaseModel):
    """Why a job failed; ``code`` is for programs."""

    code: str
    message: str


class Video(BaseModel):
    """A job or the video that it made, in the fields of OpenAI's video object and this server's own.

    Attributes:
        progress: percent.
        created_at, completed_at, expires_at: seconds since the epoch; record and files expire together.
        started_at: the same, when the latest denoise started; None while the job is queued.
        seconds: length as the request gave it; the exact length if it gave none.
        duration_s: exact length of the video.
        stage: where a running job is.
        step: steps of ``num_inference_steps`` done.
        queue_position: 1 starts next, 0 no longer waits.
        eta_s: seconds until the video is there, as far as one can tell.
        attempts: times that the work was begun.
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
    prompt: str
    seconds: str
    duration_s: float
    size: str
    error: VideoError | None
    remixed_from_video_id: None = None
    stage: str | None
    step: int
    queue_position: int
    eta_s: float | None
    attempts: int
    stage_durations: dict[str, float] | None
    request_id: str | None
    metadata: dict[str, str]
    width: int
    height: int
    num_frames: int
    fps: float
    num_inference_steps: int
    guidance_scale: float
    flow_shift: float
    sigma_schedule: str  # a stored one may be of another release
    seed: int
    negative_prompt: str | None
    generate_sound: bool
    append_metadata: bool
    fp8_linears: bool
    fp8_attention: bool
    step_cache: float


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
        eta_s: seconds until the video would be there, the wait in the queue included; None where no video of a
            comparable size has finished that could tell.
        queue_position: 1 would start next.
        relative_work: its operations as a multiple of those of a request with the checkpoint's defaults.
    """

    object: Literal["video.estimate"] = "video.estimate"
    eta_s: float | None
    queue_position: int
    relative_work: float


class VideoDeleted(BaseModel):
    id: str
    object: Literal["video.deleted"] = "video.deleted"
    deleted: Literal[True] = True


class Progress(TypedDict):
    """One event while a video is being made."""

    type: Literal["progress"]
    stage: str
    step: int  # steps done
    steps: int  # of the stage
    elapsed_s: float  # since the request came


class FinishedVideo(TypedDict):
    """The last event of a stream, and what ``generate`` returns."""

    type: Literal["video"]
    mp4: bytes
    thumbnail: bytes  # JPEG
    spritesheet: bytes  # JPEG
    record: dict[str, Any]
    frames: NotRequired[NDArray[np.uint8]]  # (frames, height, width, 3), when asked for
    waveform: NotRequired[NDArray[np.float32] | None]  # (channels, samples), when asked for


Event = Progress | FinishedVideo


class ModelCard(TypedDict):
    """The served model."""

    id: str
    object: Literal["model"]
    created: int  # seconds since the epoch
    owned_by: str
    sound: bool  # whether it can make sound
    defaults: dict[str, Any]
    max_pixel_frames: int  # height x width x frames
    guide: (
        dict[str, Any] | None
    )  # how to prompt it (cosmos3_models.checkpoint.configs.PromptGuide), if the checkpoint says so
    allowed_approximations: list[str]  # what a request may give up for speed


def described(
    params: GenerationParams, seconds: str | None = None, metadata: dict[str, str] | None = None
) -> dict[str, Any]:
    """The request's fields of every record: its own, and size and length as OpenAI writes them.

    Args:
        seconds, metadata: as the request gave them.
    """
    duration_s = params.num_frames / params.fps
    return {
        "size": f"{params.width}x{params.height}",
        "seconds": seconds or f"{duration_s:g}",
        "duration_s": round(duration_s, 6),
        "metadata": metadata or {},
        **params.model_dump(),
    }


def video_record(params: GenerationParams, model: str, timings: dict[str, float]) -> dict[str, Any]:
    """The record of a video that was made without a job."""
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
