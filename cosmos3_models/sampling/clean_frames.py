"""The latent frames of a request that its picture or clip determines."""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cosmos3_models.errors import InvalidInput
from cosmos3_models.transformer.generation_tower import Streams


class CleanFrames(NamedTuple):
    """An encoded picture or clip, and which of its latent frames stand in the video as they are."""

    latents: Tensor  # fp32 (1, c, k, h, w): latent frames 0 to k - 1
    indexes: tuple[int, ...]  # each below k

    @classmethod
    def of(cls, latents: NDArray[np.float32], indexes: tuple[int, ...]) -> "CleanFrames":
        """The frames of an array, which may be read-only."""
        return cls(torch.tensor(latents), indexes)

    def put_into(self, noise: Streams) -> Streams:
        """The noise with these frames in their places, marked as clean. Their own noise is drawn and discarded.

        Raises:
            InvalidInput: latents of another size, or too few of them.
        """
        self._check(noise.video)
        device, chosen = noise.video.device, list(self.indexes)
        video = noise.video.clone()
        video[:, :, chosen] = self.latents[:, :, chosen].to(device, video.dtype)
        clean = torch.zeros(video.shape[2], dtype=torch.bool)
        clean[chosen] = True
        return noise._replace(video=video, clean=clean.to(device))

    def _check(self, video: Tensor) -> None:
        got, expected = tuple(self.latents.shape), tuple(video.shape)
        frames = max(self.indexes) + 1
        if got[:2] + got[3:] != expected[:2] + expected[3:] or not frames <= min(got[2], expected[2]):
            needed = (*expected[:2], f"{frames} or more", *expected[3:])
            why = f"latent frames {self.indexes} of a video of {expected[2]} are to be clean"
            raise InvalidInput("clean latents", got, f"{needed}", why)
