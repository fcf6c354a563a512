"""What the stages hand over. Nothing here needs PyTorch."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cosmos3_models.media.mp4 import VideoTrack

LATENTS_FOLLOW = "latents follow"
"""The denoiser's word before the latents; everything before it is a step count."""

LATENTS_COMPLETE = "latents complete"
"""Its word after them. Nobody reads the latents on the way, so only this tells that they are all there."""

DenoiserItem = int | str | NDArray[np.float32]


@dataclass(frozen=True)
class DecodedVideo:
    track: VideoTrack
    frames: NDArray[np.uint8] | None  # only for who asked


@dataclass(frozen=True)
class DecodedSound:
    track: bytes  # AAC in an mp4
    waveform: NDArray[np.float32] | None  # only for who asked
