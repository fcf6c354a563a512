"""``input_reference``: the picture or clip that a video starts from, in the forms in which clients send it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cosmos3_models import InvalidInput
from serve.inputs.data_urls import DataUrl, is_data_url
from serve.inputs.uploads import Receiver, Upload

FIELD = "input_reference"
URLS = ("image_url", "video_url")
FILE_ID = "file_id"
FORMS = (
    'a file in a multipart form, {"image_url": "data:image/png;base64,..."}, '
    '{"video_url": "data:video/mp4;base64,..."} or {"file_id": "video_..."}'
)

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        **{name: {"type": "string", "pattern": "^data:", "description": "a data URL in base64"} for name in URLS},
        FILE_ID: {"type": "string", "description": "a finished video of this server"},
    },
    "minProperties": 1,
    "maxProperties": 1,
    "additionalProperties": False,
}
"""What a JSON body may hold; a multipart form may have a file in its place."""


ONE_REFERENCE = "a video starts from one picture or one clip"
NOTHING_OPENED = "the server opens no URL and no path of a client"


@dataclass(frozen=True)
class StoredVideo:
    """A finished video of this server, by its id."""

    file_id: str


def read_reference(value: object) -> Upload | StoredVideo | None:
    """The reference of a request, once the bytes that came with it are in a file.

    Raises:
        InvalidInput: it has another form.
    """
    if value is None or isinstance(value, Upload | StoredVideo):
        return value
    if isinstance(value, str):
        raise _refused(value, NOTHING_OPENED)
    if not isinstance(value, Mapping):
        raise _refused(value, ONE_REFERENCE)
    unknown = [name for name in value if name not in (*URLS, FILE_ID)]
    if unknown or len(value) != 1:
        why = f"{unknown[0]} is unknown" if unknown else ONE_REFERENCE
        raise _refused(dict.fromkeys(value, "..."), why)
    ((name, inner),) = value.items()
    if isinstance(inner, Upload):
        return inner
    if name == FILE_ID and isinstance(inner, str):
        return StoredVideo(inner)
    raise _refused(inner, NOTHING_OPENED)


async def received(fields: Mapping[str, Any], receiver: Receiver) -> dict[str, Any]:
    """The fields of a handle call or of a small form, with the bytes of their reference in a file.

    Raises:
        InvalidInput: a data URL is malformed.
        TooLarge: the reference is.
    """
    value = fields.get(FIELD)
    if isinstance(value, bytes | bytearray | memoryview):
        spool = receiver.spool()
        spool.feed(value)
        return {**fields, FIELD: await spool.finish()}
    if not isinstance(value, Mapping):
        return dict(fields)
    return {**fields, FIELD: {name: await _decoded(inner, receiver) for name, inner in value.items()}}


async def _decoded(value: object, receiver: Receiver) -> object:
    if not isinstance(value, str) or not is_data_url(text := value.encode(errors="replace")):
        return value
    url = DataUrl(receiver.spool())
    url.feed(text)
    url.finish()
    return await url.spool.finish()


def _refused(got: object, why: str) -> InvalidInput:
    return InvalidInput(FIELD, got, FORMS, why)
