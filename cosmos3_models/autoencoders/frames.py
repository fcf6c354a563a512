"""Pixels as 8-bit pictures, and the other way round."""

import numpy as np
import torch
from einops import rearrange
from numpy.typing import NDArray
from torch import Tensor


def to_frames(pixels: Tensor) -> Tensor:
    """Round pixels (1, 3, t, h, w) in [0, 1] to the nearest of 256 levels: uint8 (t, h, w, 3)."""
    frames = rearrange(pixels, "1 c t h w -> t h w c")
    return (frames * 255).round().to(torch.uint8).contiguous()


def to_pixels(frames: Tensor) -> Tensor:
    """8-bit pictures uint8 (t, h, w, 3) as the encoder's pixels: fp32 (1, 3, t, h, w) in [-1, 1]."""
    return rearrange(frames, "t h w c -> 1 c t h w").float() / 127.5 - 1


class HostCopy:
    """A tensor on its way to host memory. On a GPU the copy is asynchronous: the next launches do not wait for it."""

    def __init__(self, frames: Tensor) -> None:
        self._host = torch.empty(frames.shape, dtype=frames.dtype, pin_memory=frames.is_cuda)
        self._host.copy_(frames, non_blocking=True)
        self._done = torch.cuda.current_stream(frames.device).record_event() if frames.is_cuda else None

    def frames(self) -> NDArray[np.uint8]:
        """Wait for the copy."""
        if self._done is not None:
            self._done.synchronize()
        return self._host.numpy()
