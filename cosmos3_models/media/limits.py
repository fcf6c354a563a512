"""The limits of pictures and clips that come from outside, and how a file is refused."""

from cosmos3_models.errors import InvalidInput

PARAM = "input_reference"

# More than almost all cameras give. Decoded, with its transparency and its copy in RGB, it fits into MEMORY_BYTES.
MAX_PICTURE_PIXELS = 64_000_000
# 4096 x 2304, the larger of the two sizes called 4K, upright or lying.
MAX_CLIP_PIXELS = 4096 * 2304
# A minute at 30 frames a second, which also bounds the time of decoding. A model makes at most 1201 frames.
MAX_CLIP_FRAMES = 1800
# Thinner pictures would be scaled to many times the video's size, of which only the middle is used.
MAX_RATIO = 8

# The limits of a process that reads a file. Address space counts, not memory in use: libraries map 0.5 GB of it.
MEMORY_BYTES = 2 * 2**30
CPU_SECONDS = 120
# Without the time that the caller takes between two frames.
WALL_SECONDS = 180.0


def refusal(got: str, expected: str, why: str) -> InvalidInput:
    """The error for a file that is not taken."""
    return InvalidInput(PARAM, got, expected, why)


def check_picture_size(width: int, height: int) -> None:
    """Raise ``InvalidInput`` for a picture with too many pixels, or too thin."""
    _check_size("a picture", width, height, MAX_PICTURE_PIXELS)


def check_clip_size(width: int, height: int) -> None:
    """Raise ``InvalidInput`` for a clip with too many pixels in a frame, or too thin."""
    _check_size("a clip", width, height, MAX_CLIP_PIXELS)


def _check_size(what: str, width: int, height: int, most: int) -> None:
    got = f"{what} of {width} x {height} pixels"
    if width < 1 or height < 1:
        raise refusal(got, "at least 1 x 1", "there is nothing to see in it")
    if width * height > most:
        raise refusal(got, f"at most {most} pixels", "decoding it would take too much memory")
    if max(width, height) > MAX_RATIO * min(width, height):
        expected = f"a long side of at most {MAX_RATIO} times the short one"
        raise refusal(got, expected, "only a small part of it would be visible")
