"""The outputs of a request: a video or an image, pictures of it, and whatever a stage adds to the list below."""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from serve.schema import FinishedVideo

ArtifactName = Literal["video", "image", "thumbnail", "spritesheet", "preview"]

MEDIA_TYPES: dict[ArtifactName, str] = {
    "video": "video/mp4",
    "image": "image/png",
    "thumbnail": "image/jpeg",
    "spritesheet": "image/jpeg",
    "preview": "image/jpeg",
}
"""Every artifact that a request can have, and its media type."""

EXTENSIONS = {"video/mp4": ".mp4", "image/png": ".png", "image/jpeg": ".jpg"}
"""What the names of files end in, by media type."""

PREVIEW: ArtifactName = "preview"
"""Of a request that is not finished: the newest picture of what it will be."""

MAIN: tuple[ArtifactName, ...] = ("video", "image")
"""What a request can be for: it has one of these, first of its artifacts."""


@dataclass(frozen=True)
class Artifact:
    """One output of a request."""

    name: ArtifactName
    media_type: str
    data: bytes

    @classmethod
    def of(cls, name: ArtifactName, data: bytes) -> "Artifact":
        """The artifact with the media type that belongs to its name."""
        return cls(name, MEDIA_TYPES[name], data)

    @property
    def extension(self) -> str:
        """What its file's name ends in, such as ``.jpg``."""
        return EXTENSIONS[self.media_type]


@dataclass(frozen=True)
class FinishedRequest:
    """What the graph yields last.

    Attributes:
        artifacts: at least one, the main one first.
        record: fields of the request, and ``stage_durations``, seconds by stage.
        frames: uint8 (frames, height, width, 3), if the caller asked for arrays.
        waveform: fp32 (channels, samples), if the caller asked for arrays and the request for sound.
    """

    artifacts: tuple[Artifact, ...]
    record: dict[str, Any]
    frames: NDArray[np.uint8] | None = None
    waveform: NDArray[np.float32] | None = None

    def for_handle_caller(self, fields: dict[str, Any]) -> FinishedVideo:
        """Return the public form, in which each artifact has a key of its own, the video ``mp4``, and plain bytes.

        Args:
            fields: further ones of the record.
        """
        finished: FinishedVideo = {"type": "video", "record": self.record | fields}
        for artifact in self.artifacts:
            key = "mp4" if artifact.name == "video" else artifact.name
            finished[key] = artifact.data  # type: ignore[typeddict-unknown-key]  # a preview is no result
        if self.frames is not None:
            finished |= {"frames": self.frames, "waveform": self.waveform}
        return finished
