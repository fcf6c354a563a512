"""Encode frames as H.264 while they arrive and waveforms as AAC, and join both tracks in one mp4."""

import io
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from fractions import Fraction
from operator import itemgetter
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace
from numpy.typing import NDArray
from PIL import Image

from cosmos3_models.media.pictures import jpeg, sheet, shrunk, thumbnail

Frames = NDArray[np.uint8]
Waveform = NDArray[np.float32]

# Without macroblock trees, because x264's AVX-512 code for them gives different bytes in every run.
H264_OPTIONS = {"crf": "18", "preset": "medium", "x264-params": "mbtree=0"}
ENCODER_THREADS = 8  # x264's output depends on the number of threads, so it does not follow the machine's cores
SOUND_BIT_RATE = 192_000
SPRITE_SIDE = 160
SPRITES = 16
BT709 = 1  # the code of ITU-R BT.709 in H.264's colour fields


@dataclass(frozen=True)
class VideoTrack:
    """An encoded video without sound."""

    mp4: bytes
    thumbnail: bytes  # JPEG of the middle frame
    spritesheet: bytes  # JPEG of frames from first to last, row by row


class VideoWriter:
    """Encodes H.264 into an mp4 in memory, a few frames at a time. It does not store the frames.

    Args:
        num_frames: the number of frames that will be written.
        height, width: size in pixels, even.
        fps: frames per second.
    """

    def __init__(self, num_frames: int, height: int, width: int, fps: float) -> None:
        self._expected = (height, width, 3)
        self._num_frames = num_frames
        self._written = 0
        self._thumbnail = b""
        self._sprites: list[Image.Image] = []
        self._buffer = io.BytesIO()
        self._container = av.open(self._buffer, "w", format="mp4")
        rate = Fraction(fps).limit_denominator(10_000)
        self._stream: Any = self._container.add_stream("libx264", rate=rate, options=H264_OPTIONS)
        self._stream.width, self._stream.height, self._stream.pix_fmt = width, height, "yuv420p"
        context = self._stream.codec_context
        context.thread_count = ENCODER_THREADS
        context.color_primaries = context.color_trc = context.colorspace = BT709
        context.color_range = ColorRange.MPEG

    def write(self, frames: Frames) -> None:
        """Encode uint8 RGB frames (t, height, width, 3).

        Raises:
            ValueError: the frames have another type or size.
        """
        if frames.dtype != np.uint8 or frames.shape[1:] != self._expected:
            expected = f"uint8 [t, {', '.join(map(str, self._expected))}]"
            raise ValueError(f"frames: got {frames.dtype} {list(frames.shape)}, expected {expected}")
        for picture in frames:
            if self._written == self._num_frames // 2:
                self._thumbnail = thumbnail(picture)
            if self._written * SPRITES // self._num_frames >= len(self._sprites):
                self._sprites.append(shrunk(picture, SPRITE_SIDE))
            self._container.mux(self._stream.encode(_yuv_frame(picture)))
            self._written += 1

    def finish(self) -> VideoTrack:
        """Finish the track.

        Raises:
            ValueError: the number of written frames is not ``num_frames``.
        """
        if self._written != self._num_frames:
            raise ValueError(f"frames: got {self._written}, expected {self._num_frames}")
        self._container.mux(self._stream.encode(None))
        self._container.close()
        return VideoTrack(self._buffer.getvalue(), self._thumbnail, jpeg(sheet(self._sprites)))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._container.close()


def encode_chunks(writer: VideoWriter, chunks: Iterable[Frames]) -> VideoTrack:
    """Encode uint8 RGB chunks (t, height, width, 3): each is encoded while the next one is computed; none pile up."""
    with ThreadPoolExecutor(max_workers=1) as encoder:
        encoding = encoder.submit(lambda: None)
        for frames in chunks:
            encoding.result()
            encoding = encoder.submit(writer.write, frames)
        encoding.result()
    return writer.finish()


def encode_sound(waveform: Waveform, sample_rate: int) -> bytes:
    """Encode fp32 (1 or 2 channels, samples) in [-1, 1] as AAC in an mp4 container.

    Raises:
        ValueError: the waveform has another shape, or a value that is not finite.
    """
    if waveform.ndim != 2 or waveform.shape[0] not in (1, 2) or not np.isfinite(waveform).all():
        raise ValueError(f"waveform: got {list(waveform.shape)}, expected finite [1 or 2, samples]")
    layout = "stereo" if waveform.shape[0] == 2 else "mono"
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream: Any = container.add_stream("aac", rate=sample_rate, layout=layout)
        stream.bit_rate = SOUND_BIT_RATE
        samples = np.ascontiguousarray(waveform.clip(-1, 1), dtype=np.float32)
        frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout=layout)
        frame.sample_rate, frame.pts = sample_rate, 0
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return buffer.getvalue()


def mux(video: bytes, sound: bytes | None) -> bytes:
    """Join encoded tracks in one mp4, interleaved, with the index in front so that it plays while it loads."""
    tracks = [track for track in (video, sound) if track is not None]
    # libavformat reopens the output by its name to move the index to the front, so it needs a file.
    with tempfile.TemporaryDirectory() as folder, ExitStack() as opened:
        path = Path(folder) / "muxed.mp4"
        with av.open(path, "w", options={"movflags": "faststart"}) as container:
            packets: list[tuple[Fraction, Any]] = []
            for track in tracks:
                source: Any = opened.enter_context(av.open(io.BytesIO(track)))
                stream = container.add_stream_from_template(source.streams[0])
                packets += _packets(source, stream)
            for _, packet in sorted(packets, key=itemgetter(0)):
                container.mux(packet)
        return path.read_bytes()


def _packets(source: Any, stream: Any) -> Iterator[tuple[Fraction, Any]]:
    """The packets of a one-stream file with their decoding times, bound for ``stream``."""
    for packet in source.demux(source.streams[0]):
        if packet.dts is not None:
            packet.stream = stream
            yield packet.dts * packet.time_base, packet


def encode_video(frames: Frames, waveform: Waveform | None, fps: float, sample_rate: int | None) -> bytes:
    """The finished mp4 of uint8 frames (t, height, width, 3) and a waveform (channels, samples)."""
    with VideoWriter(frames.shape[0], frames.shape[1], frames.shape[2], fps) as writer:
        writer.write(frames)
        track = writer.finish()
    sound = None if waveform is None or sample_rate is None else encode_sound(waveform, sample_rate)
    return mux(track.mp4, sound)


def _yuv_frame(picture: Frames) -> av.VideoFrame:
    frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
    return frame.reformat(
        format="yuv420p",
        src_color_range=ColorRange.JPEG,
        dst_colorspace=Colorspace.ITU709,
        dst_color_range=ColorRange.MPEG,
    )
