"""All arithmetic between pixels, frames, samples, latents and tokens. Nothing else divides by a factor."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

FRAMES_PER_LATENT = 4
PIXELS_PER_LATENT = 16


@dataclass(frozen=True)
class LatentGrid:
    """Latent frames x rows x columns of a video."""

    frames: int
    height: int
    width: int

    @classmethod
    def of_video(cls, num_frames: int, height: int, width: int) -> "LatentGrid":
        """The grid of ``num_frames`` (4k + 1) pictures of ``height`` x ``width`` pixels (multiples of 16)."""
        return cls((num_frames - 1) // FRAMES_PER_LATENT + 1, height // PIXELS_PER_LATENT, width // PIXELS_PER_LATENT)

    @property
    def num_frames(self) -> int:
        """Frames of the decoded video: the first latent gives one, every other four."""
        return (self.frames - 1) * FRAMES_PER_LATENT + 1

    def patches(self, size: int) -> "LatentGrid":
        """The grid of ``size`` x ``size`` patches, odd edges rounded up (they are padded)."""
        return LatentGrid(self.frames, -(-self.height // size), -(-self.width // size))

    @property
    def cells(self) -> int:
        """Latents of one channel."""
        return self.frames * self.height * self.width


def nearest_frame_counts(num_frames: int) -> tuple[int, int]:
    """The largest 4k + 1 that is not above ``num_frames``, and the smallest that is not below, both at least 1."""
    above = max(1, -(-(num_frames - 1) // FRAMES_PER_LATENT) * FRAMES_PER_LATENT + 1)
    below = max(1, (num_frames - 1) // FRAMES_PER_LATENT * FRAMES_PER_LATENT + 1)
    return below, above


def pixel_frames_needed(indexes: Iterable[int]) -> int:
    """The frames of a video, from the first one on, that these latent frames depend on: the autoencoder is causal."""
    return FRAMES_PER_LATENT * max(indexes) + 1


def sound_latent_frames(num_frames: int, fps: float, sample_rate: int, hop: int) -> int:
    """Latent frames of the sound that covers a video: whole samples, rounded up to ``hop`` samples to a frame.

    Args:
        fps: pictures per second.
        sample_rate: samples per second.
    """
    return math.ceil(int(num_frames / fps * sample_rate) / hop)
