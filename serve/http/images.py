"""OpenAI's image API over the same graph: an image is a video of one frame."""

import asyncio
import base64
import io
import secrets
import time
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter, Request
from PIL import Image
from pydantic import BaseModel, Field

from cosmos3_models import GenerationParams
from cosmos3_models.fields import CheckedModel, Number, Why, optional, with_fields
from cosmos3_models.media.pictures import PictureFormat, encode_picture
from cosmos3_models.params import MAX_SEED
from serve.graph.batching import together
from serve.http.body import read_body
from serve.http.openapi import errors, request_schema
from serve.http.service import VideoService
from serve.schema import ModelName, Size, VideoRequest, read_request

MAX_IMAGES = 4
OF_VIDEOS_ALONE = (
    "num_frames",
    "fps",
    "generate_sound",
    "condition_frame_indexes_vision",
    "condition_video_keep",
)


@with_fields(optional(GenerationParams, without=OF_VIDEOS_ALONE))
class ImageRequest(CheckedModel):
    """The body of a request for images. The fields that follow these are those of a video that an image has as well."""

    model: ModelName = None
    size: Size = None
    n: Annotated[
        int,
        Field(ge=1, le=MAX_IMAGES, description="number of images, from as many seeds"),
        Number,
        Why(f"a request makes 1 to {MAX_IMAGES} images"),
    ] = 1
    response_format: Annotated[
        Literal["b64_json"],
        Field(description="images are in the response"),
        Why("the server stores no images that a URL could name"),
    ] = "b64_json"
    output_format: Annotated[
        PictureFormat,
        Field(description="PNG loses nothing"),
        Why("these are the formats there are"),
    ] = "png"

    def requests(self) -> list[VideoRequest]:
        """One request for a single frame for each image; they differ in their seeds, which follow one another.

        Raises:
            InvalidRequest: a field is invalid.
        """
        given = self.model_dump(exclude_none=True, exclude={"n", "response_format", "output_format"})
        first = given.pop("seed", None)
        first = secrets.randbelow(MAX_SEED + 1) if first is None else first
        seeds = [(first + number) % (MAX_SEED + 1) for number in range(self.n)]
        return [read_request(given | {"seed": seed, "num_frames": 1}) for seed in seeds]


class ImageData(BaseModel):
    """One image, and the seed that makes it again.

    Attributes:
        revised_prompt: the caption that it was made from in place of ``prompt``, if the request asked for one.
        prompt_upsampling_error: why there is none although it asked.
    """

    b64_json: str
    seed: int
    revised_prompt: str | None
    prompt_upsampling_error: str | None

    @classmethod
    def of(cls, text: str, record: dict[str, Any]) -> "ImageData":
        """The image that ``text`` encodes, by its record."""
        names = ("seed", "revised_prompt", "prompt_upsampling_error")
        return cls(b64_json=text, **{name: record[name] for name in names})


class Images(BaseModel):
    """The images of a request, in the order of their seeds.

    Attributes:
        created: seconds since the epoch.
    """

    created: int
    data: list[ImageData]
    output_format: PictureFormat
    size: str


def image_routes(service: VideoService) -> APIRouter:
    """The route of images."""
    router = APIRouter()

    @router.post(
        "/images/generations", openapi_extra=request_schema(ImageRequest), responses=errors(408, 413, 429, 502, 503)
    )
    async def generate(request: Request) -> Images:
        """Make images and return them. If the client disconnects, the work stops."""
        with service.uploads.receiving() as receiver:
            wanted = await read_body(request, receiver, lambda fields: ImageRequest(**fields), file_field="")
        made = await together(*(service.make(one) for one in wanted.requests()))
        kind = wanted.output_format
        encoded = [await asyncio.to_thread(_encoded, one["image"], kind) for one in made]
        data = [ImageData.of(text, one["record"]) for text, one in zip(encoded, made, strict=True)]
        return Images(created=int(time.time()), data=data, output_format=kind, size=made[0]["record"]["size"])

    return router


def _encoded(png: bytes, kind: PictureFormat) -> str:
    if kind != "png":
        with Image.open(io.BytesIO(png)) as image:
            png = encode_picture(np.asarray(image.convert("RGB")), kind)
    return base64.b64encode(png).decode()
