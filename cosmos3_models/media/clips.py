"""Decode clips from outside: frame by frame, every one of them sound, upright."""

from collections.abc import Iterator
from typing import Any, BinaryIO

import av
import av.subtitles.stream
import numpy as np
from av.sidedata.sidedata import Type as SideData
from av.stream import Disposition
from av.video.reformatter import Colorspace
from numpy.typing import NDArray

from cosmos3_models.media.limits import MAX_CLIP_FRAMES, MAX_CLIP_PIXELS, check_clip_size, refusal

# PyAV imports it when it opens a clip, which a process without the right to open files cannot do.
IMPORTED_EARLY = av.subtitles.stream

CODECS = ("h264", "hevc", "av1", "vp8", "vp9", "mpeg4", "prores")
DECODERS = (*CODECS, "libdav1d")
"""FFmpeg's decoders for them; no other one runs on foreign data."""
DECODER_THREADS = 2  # each holds some frames more

# A box of mp4 can name other files, and so can a playlist; no protocol, so none of them can be opened.
CONTAINER_OPTIONS = {"protocol_whitelist": "none", "codec_whitelist": ",".join(DECODERS), "enable_drefs": "0"}
# Twice the limit, because a codec pads its frames; every damage that the decoder sees is an error.
DECODER_OPTIONS = {"max_pixels": str(2 * MAX_CLIP_PIXELS), "err_detect": "crccheck+bitstream+buffer+explode"}
# Clips that do not name their colours: HD is ITU-R BT.709, anything smaller BT.601, as players have it.
HD_HEIGHT = 720
UNSPECIFIED = 2  # of ISO/IEC 23091-2, in a frame's colour space


def decode_clip(file: BinaryIO, demuxer: str) -> Iterator[av.VideoFrame]:
    """Decode the one video track of an mp4, mov, WebM or Matroska file; ``shown`` gives the pixels of a frame.

    Raises:
        InvalidInput: no video track or several, an unknown codec, too large, too thin, too many frames, a frame that is
            damaged or has another size than the first.
        Exception: whatever PyAV raises for damaged data.
    """
    file.seek(0)
    size: tuple[int, int] | None = None
    number = 0
    with av.open(
        file, format=demuxer, options=CONTAINER_OPTIONS, metadata_errors="replace", io_open=_refuse_other_files
    ) as container:
        for number, frame in enumerate(_frames(container), start=1):
            size = size or (frame.width, frame.height)
            _check(frame, number, size)
            yield frame
    if number == 0:
        raise refusal("a clip without a frame", "at least one frame", "there is nothing to see in it")


def _frames(container: Any) -> Iterator[av.VideoFrame]:
    stream = _video_track(container)
    for packet in container.demux(stream):
        if packet.is_corrupt:
            raise _damaged("a packet")
        yield from packet.decode()


def _video_track(container: Any) -> Any:
    """The one video track, with its decoder set up; cover pictures do not count."""
    tracks = [track for track in container.streams.video if not track.disposition & Disposition.attached_pic]
    if len(tracks) != 1:
        why = "it is not clear which one is meant" if tracks else "there is nothing to see in it"
        raise refusal(f"a file with {len(tracks)} video tracks", "a clip with one", why)
    context = tracks[0].codec_context
    codec = context.codec.canonical_name if context else "unknown"
    if codec not in CODECS:
        raise refusal(f"a clip in the codec {codec}", " or ".join(CODECS), "other codecs are not read")
    check_clip_size(context.width, context.height)
    context.options = DECODER_OPTIONS
    context.thread_type, context.thread_count = "AUTO", DECODER_THREADS
    return tracks[0]


def _check(frame: av.VideoFrame, number: int, size: tuple[int, int]) -> None:
    if number > MAX_CLIP_FRAMES:
        got, expected = f"a clip of more than {MAX_CLIP_FRAMES} frames", f"at most {MAX_CLIP_FRAMES}"
        raise refusal(got, expected, "decoding it would take too long; cut it to the part that matters")
    if (frame.width, frame.height) != size:
        got = f"a clip whose frame {number} has {frame.width} x {frame.height} pixels"
        raise refusal(got, f"{size[0]} x {size[1]} as in the first", "all frames of a video have one size")
    check_clip_size(*size)
    if frame.is_corrupt:
        raise _damaged(f"frame {number}")


def _damaged(part: str) -> Exception:
    return refusal(f"a clip in which {part} is damaged", "a whole one", "what is missing would show in the video")


def shown(frame: av.VideoFrame) -> NDArray[np.uint8]:
    """Convert a frame to uint8 RGB (h, w, 3), turned and mirrored as its metadata says.

    The shape of pixels is ignored, and high dynamic range is converted without tone mapping.
    """
    unnamed = Colorspace.ITU709 if frame.height >= HD_HEIGHT else Colorspace.ITU601
    colours = unnamed if frame.colorspace == UNSPECIFIED else None
    pixels = np.asarray(frame.to_ndarray(format="rgb24", src_colorspace=colours), dtype=np.uint8)
    return np.ascontiguousarray(_upright(pixels, frame))


def _upright(pixels: NDArray[np.uint8], frame: av.VideoFrame) -> NDArray[np.uint8]:
    """Apply the display matrix: point (x, y) is shown at (a x + c y, b x + d y), in quarter turns and mirrors."""
    all_data: Any = frame.side_data  # PyAV's types say mapping, but it iterates over values
    data = [data for data in all_data if data.type == SideData.DISPLAYMATRIX]
    if not data:
        return pixels
    a, b, _, c, d = np.frombuffer(bytes(data[0]), dtype=np.int32)[:5].tolist()
    if abs(b) > abs(a):
        pixels, a, d = pixels.swapaxes(0, 1), c, b
    return pixels[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]


def _refuse_other_files(url: str, flags: int, options: dict[str, str]) -> None:  # noqa: ARG001
    raise PermissionError("a clip is one file")
