"""Requests that derive from an earlier video: the same with another prompt, or the video continued."""

from collections.abc import Collection, Mapping
from typing import Any

from cosmos3_models import InvalidInput
from cosmos3_models.approximations import with_profile
from serve.inputs.reference import FIELD, StoredVideo
from serve.inputs.uploads import Upload
from serve.jobs.job import Job
from serve.schema import VideoRequest

SIZES = {"size", "width", "height"}
LENGTHS = {"seconds", "num_frames"}
OF_ITS_OWN = {"seed", *LENGTHS, "condition_frame_indexes_vision", "condition_video_keep"}
"""What an extension does not take over from the video that it continues."""
OF_THE_PROMPT = {"prompt_upsampling"}
"""What belongs to the prompt, and a request with another prompt says anew."""


def remixed(source: Job, request: VideoRequest, reference: Upload | None) -> VideoRequest:
    """The request of ``source`` with the fields of another one.

    Args:
        reference: what ``source`` started from.

    Raises:
        InvalidInput: the fields contradict each other, or those of ``source`` are no longer valid.
    """
    inherited = _inherited(source, request.given)
    if source.metadata is not None:
        inherited["metadata"] = source.metadata
    if source.seconds is not None and "num_frames" in inherited:
        inherited["seconds"] = source.seconds
        del inherited["num_frames"]
    return VideoRequest(**inherited | request.given | {FIELD: request.input_reference or reference})


def extended(source: Job | None, request: VideoRequest, clip: Upload | StoredVideo) -> VideoRequest:
    """The request for what follows a clip.

    Args:
        source: the job that made the clip, whose size and settings the new frames have; None for another's clip.

    Raises:
        InvalidInput: a field of the request belongs to other requests.
    """
    for name in (FIELD, "condition_video_keep"):
        if getattr(request, name) is not None:
            why = "an extension starts from the end of its video"
            raise InvalidInput(name, str(getattr(request, name)), "no such field here", why)
    inherited = {} if source is None else _inherited(source, request.given, without=OF_ITS_OWN)
    return VideoRequest(**inherited | request.given | {FIELD: clip, "condition_video_keep": "last"})


def _inherited(source: Job, given: Mapping[str, Any], without: Collection[str] = ()) -> dict[str, Any]:
    """The parameters of a job that a request does not replace; those of another release are left out."""
    replaced = {name for group in (SIZES, LENGTHS) if group & set(given) for name in group} | set(without)
    replaced |= set(with_profile(given)) | OF_THE_PROMPT
    return {
        name: value
        for name, value in source.params.items()
        if value is not None and name in VideoRequest.model_fields and name not in replaced
    }
