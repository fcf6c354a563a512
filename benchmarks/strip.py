"""Makes a picture of what the demo makes: a few frames of eight videos, four rows of two.

python -m benchmarks.strip --checkpoint demo --out strip.webp
"""

import argparse
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from cosmos3_models import Cosmos3Pipeline

Picture = NDArray[np.uint8]

PROMPTS = (
    "A large yellow star bounces slowly up and down on a dark background.",
    "A medium green square spins quickly clockwise on a grey background.",
    "A small pink triangle glides quickly from left to right on a light background.",
    "A large cyan ring goes slowly in circles anticlockwise on a dark background.",
    "On the left a small red ball rises quickly, and on the right a medium blue ring sinks slowly.",
    "At the top a small orange disc moves fast to the left, while at the bottom a medium cyan box turns slowly "
    "clockwise on the spot.",
    "A medium blue star orbits quickly clockwise on a grey background.",
    "A large purple circle bounces fast from wall to wall on a light background.",  # a pair that training never shows
)
COLUMNS = 2
GAP = 8  # pixels between videos
WHITE = 255
QUALITY = "85"  # of WebP, 0 to 100


def frames_of(pipeline: Cosmos3Pipeline, prompt: str, seed: int, count: int, side: int) -> Picture:
    """Evenly spaced frames of one video from first to last, side by side: (side, count * side, 3)."""
    video = pipeline(pipeline.checkpoint.defaults.params(prompt=prompt, seed=seed)).frames
    chosen = video[np.linspace(0, len(video) - 1, count).round().astype(int)]
    return np.hstack([_scaled(frame, side) for frame in chosen])


def sheet(videos: list[Picture]) -> Picture:
    """The videos in rows, with white between them."""
    rows = [np.hstack(_spaced(videos[start : start + COLUMNS], 1)) for start in range(0, len(videos), COLUMNS)]
    return np.vstack(_spaced(rows, 0))


def encoded(picture: Picture, codec: str) -> bytes:
    """The file of a picture (height, width, 3): ``png`` or ``libwebp``."""
    encoder: Any = av.CodecContext.create(codec, "w")
    encoder.height, encoder.width = picture.shape[:2]
    encoder.pix_fmt = "rgb24" if codec == "png" else "yuv420p"
    encoder.time_base = Fraction(1, 1)
    encoder.options = {} if codec == "png" else {"quality": QUALITY}
    frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format=encoder.pix_fmt)
    return b"".join(bytes(packet) for packet in [*encoder.encode(frame), *encoder.encode(None)])


def _scaled(frame: Picture, side: int) -> Picture:
    small: Any = av.VideoFrame.from_ndarray(frame, format="rgb24").reformat(width=side, height=side)
    return np.asarray(small.to_ndarray())


def _spaced(pictures: list[Picture], axis: int) -> list[Picture]:
    """With a white bar after each picture but the last."""
    shape = list(pictures[0].shape)
    shape[axis] = GAP
    bar = np.full(shape, WHITE, dtype=np.uint8)
    return [part for picture in pictures for part in (picture, bar)][:-1]


def main(arguments: list[str] | None = None) -> None:
    """Make the videos, write the picture and print the prompts in its order."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--checkpoint", default="demo", help="folder of a model of this world, or demo (%(default)s)")
    add("--device", default="auto", help="torch device (%(default)s)")
    add("--frames", type=int, default=4, help="of each video (%(default)s)")
    add("--side", type=int, default=112, help="pixels of a frame, even (%(default)s)")
    add("--out", type=Path, required=True, help="a .webp or .png file")
    args = parser.parse_args(arguments)
    codec = {".webp": "libwebp", ".png": "png"}.get(args.out.suffix)
    if codec is None:
        parser.error(f"--out: got {args.out}, expected a .webp or .png file")
    pipeline = Cosmos3Pipeline.from_pretrained(args.checkpoint, args.device)
    videos = [frames_of(pipeline, prompt, seed, args.frames, args.side) for seed, prompt in enumerate(PROMPTS)]
    args.out.write_bytes(encoded(sheet(videos), codec))
    for number, prompt in enumerate(PROMPTS, start=1):
        print(f"{number}. {prompt}")


if __name__ == "__main__":
    main()
