"""What a received file is: checked as a whole, in a process of its own, before anything is made or stored of it."""

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from cosmos3_models import InvalidInput
from cosmos3_models.media import isolated
from cosmos3_models.media.reading import MediaInfo
from serve.inputs.reference import FIELD, FORMS, StoredVideo
from serve.inputs.uploads import Receiver, Upload

INSPECTIONS = ThreadPoolExecutor(2, "inspect")
"""Files that are checked at a time: each may take a core and as much memory as its process is allowed."""

Fetch = Callable[[str, Receiver], Awaitable[Upload]]


@dataclass(frozen=True)
class CheckedUpload(Upload):
    """Bytes that were checked when they first arrived."""

    media: MediaInfo


@dataclass(frozen=True)
class CheckedReference:
    """A picture or clip that a video can start from.

    Attributes:
        upload: its bytes.
        file_id: the video of this server that it is.
    """

    upload: Upload
    media: MediaInfo
    file_id: str | None = None


async def checked(given: Upload | StoredVideo, fetch: Fetch, receiver: Receiver) -> CheckedReference:
    """Check the reference of a request.

    Args:
        fetch: copies a finished video of this server to a file of the receiver.

    Raises:
        InvalidInput: it is no picture or clip that a video can start from.
    """
    if isinstance(given, StoredVideo):
        upload, file_id = await fetch(given.file_id, receiver), given.file_id
    else:
        upload, file_id = given, None
    if upload.size == 0:
        raise InvalidInput(FIELD, "an empty file", FORMS, "there is nothing in it")
    media = upload.media if isinstance(upload, CheckedUpload) else await _inspected(upload)
    return CheckedReference(upload, media, file_id)


async def _inspected(upload: Upload) -> MediaInfo:
    return await asyncio.get_running_loop().run_in_executor(INSPECTIONS, isolated.inspect, upload.path)


def require_clip(reference: CheckedReference) -> None:
    """Raise ``InvalidInput`` for a picture."""
    if reference.media.kind != "video":
        raise InvalidInput(FIELD, "a picture", "a clip", "only a clip can be continued")
