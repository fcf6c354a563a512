"""Small pictures and clips for requests."""

import io

import numpy as np
from PIL import Image

from cosmos3_models.media.mp4 import encode_video


def picture(width: int = 64, height: int = 48, kind: str = "png", seed: int = 0) -> bytes:
    """The bytes of a picture of random pixels."""
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def clip(width: int = 64, height: int = 48, frames: int = 9, fps: float = 24.0) -> bytes:
    """The bytes of an mp4 whose frames become lighter and lighter."""
    shades = np.linspace(0, 255, frames).astype(np.uint8)
    return encode_video(np.broadcast_to(shades[:, None, None, None], (frames, height, width, 3)), None, fps, None)
