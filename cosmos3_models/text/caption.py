"""The structured captions that Cosmos3 is trained on: their fields, in order, as checked models.

The names and their order are those of NVIDIA's schemas for videos and for images; an image has neither time nor sound.
"""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, create_model

Of = Literal["both", "video", "image"]


class Entry(NamedTuple):
    """A field of a caption: what it says, of which medium it is, and its type."""

    says: str
    of: Of = "both"
    kind: Any = str


def _not_blank(text: str) -> str:
    if not text.strip():
        raise ValueError("text that is not blank")
    return text


Whole = Annotated[str, AfterValidator(_not_blank)]
"""The one text that describes everything: a caption without it is empty, whatever else it has."""

SUBJECT: Mapping[str, Entry] = {
    "description": Entry("who or what it is and looks like, down to shape, colour and markings"),
    "appearance_details": Entry("materials, textures and fine details"),
    "relationship": Entry("how it relates to the other subjects and to its surroundings"),
    "location": Entry("where in the frame it is"),
    "relative_size": Entry("how much of the frame it fills"),
    "orientation": Entry("which way it faces, seen from the camera"),
    "pose": Entry("its posture at the start"),
    "action": Entry("what it does, from start to end", "video"),
    "state_changes": Entry("how it changes over time", "video"),
    "clothing": Entry("what it wears"),
    "expression": Entry("its facial expression"),
    "gender": Entry("if it can be seen"),
    "age": Entry("age group, if it can be seen"),
    "skin_tone_and_texture": Entry("of people"),
    "facial_features": Entry("of people and animals"),
    "number_of_subjects": Entry("how many of this subject there are", kind=int),
    "number_of_arms": Entry("visible arms of each", kind=int),
    "number_of_legs": Entry("visible legs of each", kind=int),
    "number_of_hands": Entry("visible hands of each", "image", int),
    "number_of_fingers": Entry("visible fingers of each", "image", int),
}
LIGHTING: Mapping[str, Entry] = {
    "conditions": Entry("kind and quality of the light"),
    "direction": Entry("where it comes from"),
    "shadows": Entry("how hard they are and how they fall"),
    "illumination_effect": Entry("what the light does to the scene"),
}
AESTHETICS: Mapping[str, Entry] = {
    "composition": Entry("how the frame is arranged"),
    "color_scheme": Entry("dominant colours"),
    "mood_atmosphere": Entry("mood in a few words"),
    "patterns": Entry("repeated visual patterns"),
}
CINEMATOGRAPHY: Mapping[str, Entry] = {
    "camera_motion": Entry("how the camera moves, or that it is static", "video"),
    "framing": Entry("kind of shot"),
    "camera_angle": Entry("height and tilt of the camera"),
    "depth_of_field": Entry("how much is in focus"),
    "focus": Entry("what is in focus"),
    "lens_focal_length": Entry("kind of lens"),
}
ACTION: Mapping[str, Entry] = {
    "time": Entry("from M:SS to M:SS, written as 0:00-0:02"),
    "description": Entry("what happens in this time"),
}
SEGMENT: Mapping[str, Entry] = {
    "segment_index": Entry("0, 1, 2 and so on", kind=int),
    "time_range": Entry("from M:SS to M:SS, written as 0:00-0:02"),
    "description": Entry("what can be seen"),
    "key_changes": Entry("what changes"),
    "camera": Entry("what the camera does"),
}
QUADRANTS: Mapping[str, Entry] = {
    name: Entry("what is there") for name in ("top_left", "top_right", "bottom_left", "bottom_right", "absolute_center")
}


def _model(name: str, entries: Mapping[str, Entry], medium: Of) -> type[BaseModel]:
    of_medium = {key: entry for key, entry in entries.items() if entry.of in ("both", medium)}
    fields: dict[str, Any] = {key: (entry.kind, Field(description=entry.says)) for key, entry in of_medium.items()}
    # A server that decodes by a schema needs it closed, with every field required.
    return create_model(name, __config__=ConfigDict(extra="forbid", frozen=True), **fields)


def _caption(medium: Of) -> type[BaseModel]:
    def part(name: str, entries: Mapping[str, Entry]) -> Any:
        return _model(name, entries, medium)

    subject: Any = part("Subject", SUBJECT)
    action: Any = part("Action", ACTION)
    segment: Any = part("Segment", SEGMENT)
    entries = {
        "subjects": Entry("everything that the viewer should look at, the most important first", kind=list[subject]),
        "background_setting": Entry("the surroundings"),
        "lighting": Entry("the light", kind=part("Lighting", LIGHTING)),
        "aesthetics": Entry("the look", kind=part("Aesthetics", AESTHETICS)),
        "cinematography": Entry("the camera", kind=part("Cinematography", CINEMATOGRAPHY)),
        "style_medium": Entry("the medium, such as live-action video, photograph or animation"),
        "artistic_style": Entry("genre or style"),
        "context": Entry("what the scene is about, in a sentence"),
        "actions": Entry("what happens, in order, from the first second to the last", "video", list[action]),
        "text_and_signage_elements": Entry("each text that can be read, and where it stands", kind=list[str]),
        "segments": Entry("the shots, or the parts of a single shot, without gaps", "video", list[segment]),
        "transitions": Entry("each change from one shot to the next; none in a single shot", "video", list[str]),
        "temporal_caption": Entry("all of it as prose, second by second: the most important field", "video", Whole),
        "audio_description": Entry("what can be heard: speech, music, noises, surroundings", "video"),
        "quadrant_scan": Entry("the frame by its parts", "image", part("Quadrants", QUADRANTS)),
        "comprehensive_t2i_caption": Entry("all of it as prose: the most important field", "image", Whole),
    }
    return part("Caption", entries)


VIDEO_CAPTION, IMAGE_CAPTION = _caption("video"), _caption("image")

MEASURES = ("resolution", "aspect_ratio", "duration", "fps")
"""Keys of a caption that follow from the request, in their order after the others."""

RATIOS = ((1, 1), (4, 3), (3, 4), (16, 9), (9, 16))
"""The ratios of width to height that captions name."""

NEAR = 0.065  # the official sizes differ from their ratio by up to this part, 320 x 256 the most


def measures(num_frames: int, fps: float, height: int, width: int) -> Iterator[tuple[str, Any]]:
    """Yield the keys of ``MEASURES`` that a video has, or an image if there is one frame."""
    yield "resolution", {"H": height, "W": width}
    for across, down in RATIOS:
        if abs(width * down / (height * across) - 1) <= NEAR:
            yield "aspect_ratio", f"{across},{down}"
    if num_frames > 1:
        yield "duration", f"{int(num_frames / fps)}s"
        yield "fps", float(fps)
