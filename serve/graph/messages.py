"""What the stages return. Nothing here needs PyTorch."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cosmos3_models.media.mp4 import VideoTrack
from cosmos3_models.media.pictures import encode_picture, thumbnail
from serve.graph.artifacts import Artifact

LATENTS_FOLLOW = "latents follow"
"""The denoiser's item before the latents; every item before it is a count of steps, or belongs to a preview."""

PREVIEW_FOLLOWS = "preview follows"
"""Its item before the latents of a preview, fp32 (n, c, k, h, w) as ``cosmos3_models.sampling.previews`` takes them."""

LATENTS_COMPLETE = "latents complete"
"""Its item after them. The graph does not read the latents, so only this item tells that all of them exist."""

DenoiserItem = int | str | NDArray[np.float32]


@dataclass(frozen=True)
class DecodedVideo:
    """An encoded video without sound, or an image.

    Attributes:
        track: H.264 in an mp4; None of an image.
        pictures: those that become artifacts: an image itself first, then JPEGs.
        frames: uint8 (frames, height, width, 3), if the caller asked for arrays.
    """

    track: bytes | None
    pictures: tuple[Artifact, ...]
    frames: NDArray[np.uint8] | None = None

    @classmethod
    def of(cls, track: VideoTrack, frames: NDArray[np.uint8] | None = None) -> "DecodedVideo":
        """The message for an encoded track and its pictures."""
        pictures = Artifact.of("thumbnail", track.thumbnail), Artifact.of("spritesheet", track.spritesheet)
        return cls(track.mp4, pictures, frames)

    @classmethod
    def of_image(cls, frame: NDArray[np.uint8], frames: NDArray[np.uint8] | None = None) -> "DecodedVideo":
        """The message for a video of one frame (height, width, 3): an image that lost nothing, and its thumbnail."""
        pictures = Artifact.of("image", encode_picture(frame, "png")), Artifact.of("thumbnail", thumbnail(frame))
        return cls(None, pictures, frames)


@dataclass(frozen=True)
class DecodedSound:
    """An encoded sound track.

    Attributes:
        track: AAC in an mp4.
        waveform: fp32 (channels, samples), if the caller asked for arrays.
    """

    track: bytes
    waveform: NDArray[np.float32] | None = None
