"""Pictures and clips made with Pillow and PyAV, and damaged copies of them."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image

Frames = NDArray[np.uint8]

LOSSLESS = {"codec": "libx264rgb", "pixels": "rgb24", "options": {"qp": "0"}}
"""H.264 that gives every pixel back."""


def film(frames: int = 9, height: int = 48, width: int = 64) -> Frames:
    """A ramp that moves to the right over one that stands, and gets bluer."""
    t, y, x = np.mgrid[:frames, :height, :width]
    return np.stack([(x * 255 // width + t * 5) % 256, y * 255 // height, t * 10 % 256], axis=-1).astype(np.uint8)


def clip(
    frames: Frames,
    container: str = "mp4",
    codec: str = "libx264",
    pixels: str = "yuv420p",
    options: dict[str, str] | None = None,
    tracks: int = 1,
    sound: bool = False,
    container_options: dict[str, str] | None = None,
) -> bytes:
    """An encoded clip of uint8 frames (n, h, w, 3)."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container, container_options=container_options or {}) as output:
        streams: list[Any] = [output.add_stream(codec, rate=24, options=options or {}) for _ in range(tracks)]
        for stream in streams:
            stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], pixels
            stream.codec_context.thread_count = 1  # with several, x264 makes another file each time
        audio: Any = output.add_stream("aac", rate=48_000, layout="stereo") if sound else None
        for stream in streams:
            for frame in frames:
                output.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            output.mux(stream.encode(None))
        if audio is not None:
            silence = av.AudioFrame.from_ndarray(np.zeros((2, 4096), np.float32), format="fltp", layout="stereo")
            silence.sample_rate, silence.pts = 48_000, 0
            output.mux(audio.encode(silence))
            output.mux(audio.encode(None))
    return buffer.getvalue()


def lossless(frames: Frames, container: str = "mp4", **more: Any) -> bytes:
    """A clip that gives every pixel back."""
    return clip(frames, container, **LOSSLESS, **more)


def picture(image: Image.Image, kind: str, **options: Any) -> bytes:
    """An encoded picture."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def saved(folder: Path, data: bytes, name: str = "file") -> Path:
    """A file with these bytes."""
    path = folder / name
    path.write_bytes(data)
    return path


def mutations(data: bytes, number: int, seed: int = 0) -> Sequence[bytes]:
    """Copies with some bytes changed, a piece removed, doubled, or cut off at the end; always the same ones."""
    random = np.random.default_rng(seed)
    copies = []
    for index in range(number):
        copy = bytearray(data)
        start, end = sorted(int(place) for place in random.integers(0, len(data), 2))
        end = min(end, start + 64)
        if index % 4 == 0:
            for place in random.integers(0, len(data), int(random.integers(1, 12))):
                copy[place] = int(random.integers(256))
        elif index % 4 == 1:
            del copy[start:end]
        elif index % 4 == 2:
            copy[end:end] = copy[start:end]
        else:
            del copy[start:]
        copies.append(bytes(copy))
    return copies
