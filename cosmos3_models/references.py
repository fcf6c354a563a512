"""What a video takes from the picture or clip that it starts from, and whether a request may ask for that."""

from typing import Literal

from cosmos3_models.errors import InvalidInput
from cosmos3_models.params import GenerationParams
from cosmos3_models.shapes import pixel_frames_needed

ReferenceKind = Literal["image", "video"]
"""What a request may begin from: a picture or a clip."""

NAMES: dict[ReferenceKind, str] = {"image": "a picture", "video": "a clip"}
CLEAN_BY_DEFAULT: dict[ReferenceKind, tuple[int, ...]] = {"image": (0,), "video": (0, 1)}


def clean_frames(params: GenerationParams, kind: ReferenceKind) -> tuple[int, ...]:
    """The latent frames of a request that its picture or clip determines, in order.

    By default those are the first one of a picture and the first two of a clip, as far as the video has them.
    """
    return tuple(index for index in _named(params, kind) if index < params.grid.frames)


def reference_frames(params: GenerationParams, kind: ReferenceKind) -> int:
    """The frames of a picture or clip, and of its video, on which the clean latent frames depend."""
    return pixel_frames_needed(clean_frames(params, kind))


def check_reference(params: GenerationParams, kind: ReferenceKind | None) -> None:
    """Check that a request names latent frames of a reference only if it has one, and leaves some to be generated.

    Args:
        kind: of its reference; None if it has none.

    Raises:
        InvalidInput: it does not.
    """
    if kind is None:
        if (indexes := params.condition_frame_indexes_vision) is not None:
            expected, why = "a picture or clip as well", "these latent frames are taken from it"
            raise InvalidInput("condition_frame_indexes_vision", list(indexes), expected, why)
    elif not params.generate_sound and len(clean_frames(params, kind)) == params.grid.frames:
        least = pixel_frames_needed([max(_named(params, kind)) + 1])
        why = f"{NAMES[kind]} determines all latent frames of this video, so there is nothing to generate"
        raise InvalidInput("num_frames", params.num_frames, f"at least {least}", why)


def _named(params: GenerationParams, kind: ReferenceKind) -> tuple[int, ...]:
    """The clean frames of a video of any length."""
    chosen = params.condition_frame_indexes_vision
    return CLEAN_BY_DEFAULT[kind] if chosen is None else tuple(chosen)  # a stored request has a list
