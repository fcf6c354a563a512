"""Makes a picture of what the demo makes: a few frames of eight videos, four rows of two.

python -m benchmarks.strip --checkpoint demo --out strip.webp
python -m benchmarks.strip --checkpoint demo --of pictures --out pictures.webp
python -m benchmarks.strip --checkpoint demo --of previews --side 80 --out previews.webp

Of pictures, every row begins with an image, goes on with a video that begins with it, and ends with a video that
continues that one. Of previews, every row has what a video looks like after a quarter, a half and three quarters of its
steps, and the video.
"""

import argparse
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

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
PICTURES = (  # the prompt of an image, and of the videos that begin with it and go on
    (
        "A large red ball on a grey background.",
        "A large red ball bounces slowly from wall to wall on a grey background.",
    ),
    ("A medium green star on a dark background.", "A medium green star spins slowly clockwise on a dark background."),
    ("A small blue ring on a light background.", "A small blue ring orbits slowly clockwise on a light background."),
)
PREVIEWED = PROMPTS[:3]
PREVIEWS = 3
GAP = 8  # pixels between videos
WHITE = 255
QUALITY = "85"  # of WebP, 0 to 100


def videos(pipeline: Cosmos3Pipeline) -> Iterator[Picture]:
    """The frames of a video for each of ``PROMPTS``."""
    for seed, prompt in enumerate(PROMPTS):
        yield pipeline(pipeline.checkpoint.defaults.params(prompt=prompt, seed=seed)).frames


def pictures_and_videos(pipeline: Cosmos3Pipeline) -> Iterator[Picture]:
    """The frames of an image and two videos for each of ``PICTURES``."""
    of = pipeline.checkpoint.defaults.params
    for seed, (still, moving) in enumerate(PICTURES):
        image = pipeline(of(prompt=still, seed=seed, num_frames=1)).frames
        video = pipeline(of(prompt=moving, seed=seed), image=image[0]).frames
        further = pipeline(of(prompt=moving, seed=seed, condition_video_keep="last"), video=video).frames
        yield from (image, video, further)


def previews_and_videos(pipeline: Cosmos3Pipeline) -> Iterator[Picture]:
    """The moments of each preview and the frames of the video for each of ``PREVIEWED``."""
    of = partial(pipeline.checkpoint.defaults.params, previews=PREVIEWS)
    steps = max(of(prompt="-").num_inference_steps, PREVIEWS + 1)
    for seed, prompt in enumerate(PREVIEWED):
        shown: dict[int, Picture] = {}
        params = of(prompt=prompt, seed=seed, num_inference_steps=steps)
        video = pipeline(params, on_preview=shown.__setitem__).frames
        yield from (*shown.values(), video)


class Sheet(NamedTuple):
    """One sort of picture: what makes its parts, how many are in a row, and the prompts in their order."""

    make: Callable[[Cosmos3Pipeline], Iterator[Picture]]
    columns: int
    prompts: Sequence[str]


SHEETS = {
    "videos": Sheet(videos, 2, PROMPTS),
    "pictures": Sheet(pictures_and_videos, 3, tuple(chain(*PICTURES))),
    "previews": Sheet(previews_and_videos, PREVIEWS + 1, PREVIEWED),
}


def frames_of(video: Picture, count: int, side: int) -> Picture:
    """Evenly spaced frames from first to last, side by side: (side, count * side, 3); an image is one frame."""
    chosen = video[np.linspace(0, len(video) - 1, min(count, len(video))).round().astype(int)]
    return np.hstack([_scaled(frame, side) for frame in chosen])


def sheet(parts: Sequence[Picture], columns: int) -> Picture:
    """The images and videos in rows, with white between them."""
    rows = [np.hstack(_spaced(parts[start : start + columns], 1)) for start in range(0, len(parts), columns)]
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


def _spaced(pictures: Sequence[Picture], axis: int) -> list[Picture]:
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
    add("--of", choices=SHEETS, default="videos", help="what the picture shows (%(default)s)")
    add("--out", type=Path, required=True, help="a .webp or .png file")
    args = parser.parse_args(arguments)
    codec = {".webp": "libwebp", ".png": "png"}.get(args.out.suffix)
    if codec is None:
        parser.error(f"--out: got {args.out}, expected a .webp or .png file")
    pipeline = Cosmos3Pipeline.from_pretrained(args.checkpoint, args.device)
    chosen = SHEETS[args.of]
    parts = [frames_of(video, args.frames, args.side) for video in chosen.make(pipeline)]
    args.out.write_bytes(encoded(sheet(parts, chosen.columns), codec))
    for number, prompt in enumerate(chosen.prompts, start=1):
        print(f"{number}. {prompt}")


if __name__ == "__main__":
    main()
