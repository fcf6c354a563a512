"""Clips from outside: codecs, orientation, colours, first and last frames, and everything that is refused."""

import io
import struct
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from av.video.reformatter import Colorspace
from media_files import clip, film, lossless, mutations, saved
from numpy.typing import NDArray

from cosmos3_models.errors import InvalidInput
from cosmos3_models.media import clips, limits, reading
from cosmos3_models.media.mp4 import encode_video, mux

FILM = film()
QUIET = {"x265-params": "log-level=none"}


def read(path: Path, count: int = 9, keep: reading.Keep = "first") -> NDArray[np.uint8]:
    return np.concatenate(list(reading.frames(path, count, keep)))


def refused(path: Path) -> str:
    with pytest.raises(InvalidInput) as error:
        reading.inspect(path)
    assert error.value.param == "input_reference"
    return str(error.value)


@pytest.mark.parametrize("container", ["mp4", "mov", "matroska"])
def test_a_lossless_clip_comes_back_bit_for_bit(tmp_path: Path, container: str) -> None:
    path = saved(tmp_path, lossless(FILM, container), "named_wrongly.png")
    assert reading.inspect(path) == reading.MediaInfo("video", 64, 48, 9)
    np.testing.assert_array_equal(read(path), FILM)


@pytest.mark.parametrize(
    ("container", "codec", "pixels", "options"),
    [
        ("mp4", "libx264", "yuv420p", {}),
        ("mp4", "libx264", "yuv420p", {"bf": "0", "movflags": "frag_keyframe+empty_moov"}),
        ("mov", "libx264", "yuv420p10le", {}),
        ("mp4", "libx265", "yuv420p10le", QUIET),
        ("mp4", "mpeg4", "yuv420p", {"qscale": "2", "global_quality": "236"}),
        ("mov", "prores_ks", "yuv422p10le", {}),
        ("webm", "libvpx", "yuv420p", {"crf": "10", "b": "1M"}),
        ("webm", "libvpx-vp9", "yuv420p", {}),
        ("matroska", "libx264", "yuv444p", {}),
    ],
)
def test_codecs_and_depths(tmp_path: Path, container: str, codec: str, pixels: str, options: dict[str, str]) -> None:
    path = saved(tmp_path, clip(FILM, container, codec, pixels, options))
    assert reading.inspect(path) == reading.MediaInfo("video", 64, 48, 9)
    assert np.abs(read(path).astype(int) - FILM).mean() < 6


@pytest.mark.parametrize("size", [(47, 63), (1, 1), (17, 3), (35, 50)])
def test_odd_sizes_keep_their_last_row_and_column(tmp_path: Path, size: tuple[int, int]) -> None:
    frames = film(3, *size)
    path = saved(tmp_path, clip(frames, "matroska", "libx264", "yuv444p", {"qp": "0"}))
    assert np.abs(read(path, 3).astype(int) - frames).max() <= 4
    flat = np.full((3, *size, 3), (30, 200, 40), dtype=np.uint8)
    padded = np.pad(flat, [(0, 0), (0, size[0] % 2), (0, size[1] % 2), (0, 0)])[:, : size[0], : size[1]]
    path = saved(tmp_path, clip(padded, "webm", "libvpx-vp9", "yuv420p"))
    assert np.abs(read(path, 3).astype(int) - flat).max() <= 8


def test_sound_does_no_harm(tmp_path: Path) -> None:
    path = saved(tmp_path, lossless(FILM, sound=True))
    assert reading.inspect(path).frames == 9
    np.testing.assert_array_equal(read(path), FILM)


@pytest.mark.parametrize("count", [1, 4, 5, 9])
def test_first_and_last_frames(tmp_path: Path, count: int) -> None:
    path = saved(tmp_path, lossless(FILM))
    np.testing.assert_array_equal(read(path, count, "first"), FILM[:count])
    np.testing.assert_array_equal(read(path, count, "last"), FILM[-count:])


@pytest.mark.parametrize("keep", ["first", "last"])
def test_the_last_frame_of_a_short_clip_is_repeated(tmp_path: Path, keep: reading.Keep) -> None:
    path = saved(tmp_path, lossless(FILM[:2]))
    np.testing.assert_array_equal(read(path, 5, keep), FILM[[0, 1, 1, 1, 1]])


def test_the_first_frames_are_there_before_the_clip_is_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded = []
    convert = clips.shown
    monkeypatch.setattr(reading, "shown", lambda frame: (decoded.append(frame), convert(frame))[1])
    frames = reading.frames(saved(tmp_path, lossless(film(60))), 60, "first")
    next(frames)
    assert len(decoded) == 1
    frames.close()  # type: ignore[attr-defined]


def turned(data: bytes, matrix: tuple[int, int, int, int]) -> bytes:
    """An mp4 with another display matrix (a, b, c, d), whose place in a track's header is fixed (ISO/IEC 14496-12)."""
    a, b, c, d = (value * 0x10000 for value in matrix)
    start = data.index(b"tkhd") + 4 + 40
    return data[:start] + struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 0x40000000) + data[start + 36 :]


@pytest.mark.parametrize(
    ("matrix", "expected"),
    [
        ((1, 0, 0, 1), lambda x: x),
        ((0, 1, -1, 0), lambda x: np.rot90(x, -1, axes=(1, 2))),  # a quarter turn clockwise: a phone held upright
        ((-1, 0, 0, -1), lambda x: x[:, ::-1, ::-1]),
        ((0, -1, 1, 0), lambda x: np.rot90(x, 1, axes=(1, 2))),
        ((-1, 0, 0, 1), lambda x: x[:, :, ::-1]),
        ((1, 0, 0, -1), lambda x: x[:, ::-1]),
        ((0, 1, 1, 0), lambda x: x.swapaxes(1, 2)),
        ((0, -1, -1, 0), lambda x: x.swapaxes(1, 2)[:, ::-1, ::-1]),
    ],
)
def test_rotation_and_mirroring_are_applied(
    tmp_path: Path, matrix: tuple[int, int, int, int], expected: Callable[[Any], Any]
) -> None:
    path = saved(tmp_path, turned(lossless(FILM), matrix))
    upright = expected(FILM)
    np.testing.assert_array_equal(read(path), upright)
    assert reading.inspect(path) == reading.MediaInfo("video", upright.shape[2], upright.shape[1], 9)


@pytest.mark.parametrize(("height", "colours"), [(64, Colorspace.ITU601), (720, Colorspace.ITU709)])
def test_colours_of_a_clip_that_does_not_name_them(tmp_path: Path, height: int, colours: Colorspace) -> None:
    frame = av.VideoFrame.from_ndarray(np.full((height, 128, 3), (235, 30, 30), np.uint8), format="rgb24")
    frame = frame.reformat(format="yuv420p", dst_colorspace=colours)
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as output:
        stream = output.add_stream("libx264", rate=24)
        stream.width, stream.height, stream.pix_fmt = 128, height, "yuv420p"
        frame.colorspace = 2  # type: ignore[assignment]
        output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    pixels = read(saved(tmp_path, buffer.getvalue()), 1)
    assert np.abs(pixels.astype(int) - (235, 30, 30)).max() <= 4


def test_a_video_of_our_own_has_its_colours(tmp_path: Path) -> None:
    frames = np.full((3, 64, 64, 3), (30, 200, 40), dtype=np.uint8)
    path = saved(tmp_path, encode_video(frames, None, 24, None))
    assert np.abs(read(path, 3).astype(int) - frames).max() <= 4


def test_a_cover_picture_is_no_second_track(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as output:
        stream: Any = output.add_stream("libx264rgb", rate=24, options={"qp": "0"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "rgb24"
        cover: Any = output.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = 32, 32, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        for frame in FILM:
            output.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        output.mux(stream.encode(None))
        output.mux(cover.encode(av.VideoFrame.from_ndarray(film(1, 32, 32)[0], format="rgb24")))
        output.mux(cover.encode(None))
    path = saved(tmp_path, buffer.getvalue())
    with av.open(path) as container:
        assert len(container.streams.video) == 2, "the file has a cover"
    np.testing.assert_array_equal(read(path), FILM)


def resized_in_the_middle() -> bytes:
    """A VP8 clip whose fourth frame is smaller, which the codec allows at a key frame."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="webm") as output:
        stream: Any = output.add_stream("libvpx", rate=24)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        packets: list[Any] = []
        for frames in (film(3), film(3, 32, 48)):
            encoder: Any = av.CodecContext.create("libvpx", "w")
            encoder.width, encoder.height, encoder.pix_fmt = frames.shape[2], frames.shape[1], "yuv420p"
            encoder.time_base = Fraction(1, 24)
            images = [av.VideoFrame.from_ndarray(frame, format="rgb24") for frame in frames]
            packets += [packet for image in [*images, None] for packet in encoder.encode(image)]
        for time, packet in enumerate(packets):
            packet.stream, packet.pts, packet.dts = stream, time * 40, time * 40
            output.mux(packet)
    return buffer.getvalue()


def vp8_bomb() -> bytes:
    """A WebM whose VP8 key frame declares 16383 x 16383 pixels (RFC 6386)."""
    data = bytearray(clip(FILM, "webm", "libvpx"))
    start = data.index(b"\x9d\x01\x2a") + 3
    data[start : start + 4] = struct.pack("<HH", 16383, 16383)
    return bytes(data)


def sound_only() -> bytes:
    return clip(FILM, tracks=0, sound=True)


NO_TRACK = "expected a clip with one, because there is nothing to see in it"
REFUSED: list[tuple[str, Callable[[], bytes], str]] = [
    ("sound alone", sound_only, f"got 'a file with 0 video tracks', {NO_TRACK}"),
    (
        "two tracks",
        lambda: clip(FILM, tracks=2),
        "got 'a file with 2 video tracks', expected a clip with one, because it is not clear which one is meant",
    ),
    (
        "codec",
        lambda: clip(FILM, "matroska", "ffv1"),
        "got 'a clip in the codec ffv1', expected h264 or hevc or av1 or vp8 or vp9 or mpeg4 or prores",
    ),
    (
        "large",
        lambda: clip(np.zeros((1, 2320, 4096, 3), np.uint8), options={"preset": "ultrafast"}),
        f"got 'a clip of 4096 x 2320 pixels', expected at most {limits.MAX_CLIP_PIXELS} pixels",
    ),
    (
        "thin",
        lambda: clip(film(1, 16, 144)),
        "got 'a clip of 144 x 16 pixels', expected a long side of at most 8 times the short one",
    ),
    (
        "another size in the middle",
        resized_in_the_middle,
        "got 'a clip whose frame 4 has 48 x 32 pixels', expected 64 x 48 as in the first",
    ),
    ("bomb", vp8_bomb, "got 'a file that cannot be decoded', expected an undamaged picture or clip"),
    ("playlist", lambda: b"#EXTM3U\n#EXTINF:1,\nother.mp4\n#EXT-X-ENDLIST\n", "got 'a playlist', expected a picture"),
    ("list of files", lambda: b"ffconcat version 1.0\nfile other.mp4\n", "got 'a text file'"),
    ("boxes of nothing", lambda: struct.pack(">I4s8x", 16, b"ftyp"), "got 'a file that cannot be decoded'"),
]


@pytest.mark.parametrize(("make", "answer"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED])
def test_a_clip_is_refused_with_one_sentence(tmp_path: Path, make: Callable[[], bytes], answer: str) -> None:
    saved(tmp_path, lossless(FILM), "other.mp4")
    assert refused(saved(tmp_path, make())).startswith(f"input_reference: {answer}")


def test_a_clip_of_too_many_frames_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path, clip(FILM))
    monkeypatch.setattr(clips, "MAX_CLIP_FRAMES", 8)
    assert "got 'a clip of more than 8 frames', expected at most 8" in refused(path)
    monkeypatch.setattr(clips, "MAX_CLIP_FRAMES", 9)
    assert reading.inspect(path).frames == 9


def box(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I4s", 8 + len(body), name) + body


def with_boxes_replaced(data: bytes, path: list[bytes], body: bytes) -> bytes:
    """An mp4 in which the innermost box of a path has another body; all lengths follow."""
    result, at = b"", 0
    while at < len(data):
        length, name = struct.unpack(">I4s", data[at : at + 8])
        inner = data[at + 8 : at + length]
        if name == path[0]:
            inner = with_boxes_replaced(inner, path[1:], body) if path[1:] else body
        result, at = result + box(name, inner), at + length
    return result


def reference_to(other: Path) -> bytes:
    """The table of an mp4's data sources with one entry, an alias record, as QuickTime wrote for other files."""
    name = str(other).encode()
    alias = bytes(10) + b"\0" + bytes(27) + bytes(12) + b"\0" + bytes(63) + bytes(16) + bytes(4) + bytes(16)
    alias += struct.pack(">HH", 2, len(name)) + name + b"\0" * (len(name) % 2) + struct.pack(">HH", 0xFFFF, 0)
    entry = struct.pack(">I4sI", 12 + len(alias), b"alis", 0) + alias
    return struct.pack(">II", 0, 1) + entry


def test_a_clip_whose_pixels_are_in_another_file_is_refused(tmp_path: Path) -> None:
    data = lossless(FILM)
    other = saved(tmp_path, data, "other.mp4")
    path = [b"moov", b"trak", b"mdia", b"minf", b"dinf", b"dref"]
    pointing = saved(tmp_path, with_boxes_replaced(data, path, reference_to(other)), "pointing.mov")
    trusting = {"enable_drefs": "1", "use_absolute_path": "1"}
    with av.open(pointing, options=trusting) as container:
        assert len(list(container.decode(video=0))) == 9, "FFmpeg follows the reference if it may"
    assert "got 'a clip without a frame'" in refused(pointing) or "cannot be decoded" in refused(pointing)


def test_the_demuxer_cannot_open_another_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = lossless(FILM)
    other = saved(tmp_path, data, "other.mp4")
    path = [b"moov", b"trak", b"mdia", b"minf", b"dinf", b"dref"]
    pointing = saved(tmp_path, with_boxes_replaced(data, path, reference_to(other)), "pointing.mov")
    trusting = {"enable_drefs": "1", "use_absolute_path": "1"}
    monkeypatch.setattr(clips, "CONTAINER_OPTIONS", clips.CONTAINER_OPTIONS | trusting)
    refused(pointing)


TRUNCATED = "expected a whole one, because it ends before its own structure does"
WHOLE = {
    "mp4": lambda: clip(FILM),
    "mp4 with its index in front": lambda: mux(clip(FILM), None),
    "mp4 with sound": lambda: clip(FILM, sound=True),
    "mov": lambda: clip(FILM, "mov"),
    "webm": lambda: clip(FILM, "webm", "libvpx-vp9"),
    "matroska": lambda: clip(FILM, "matroska", sound=True),
}


@pytest.mark.parametrize("name", WHOLE)
def test_a_clip_truncated_anywhere_is_refused(tmp_path: Path, name: str) -> None:
    data = WHOLE[name]()
    for length in [*range(1, 48), *range(48, len(data) - 16, 211), *range(len(data) - 16, len(data))]:
        refused(saved(tmp_path, data[:length]))


def test_a_live_clip_of_open_lengths_is_read_and_refused_when_cut(tmp_path: Path) -> None:
    """A browser records WebM like this: neither segment nor clusters say how long they are."""
    data = clip(FILM, "webm", "libvpx-vp9", container_options={"live": "1"})
    assert b"\x18\x53\x80\x67\x01\xff\xff\xff\xff\xff\xff\xff" in data
    assert reading.inspect(saved(tmp_path, data)).frames == 9
    assert TRUNCATED in refused(saved(tmp_path, data[:-3]))


def test_a_damaged_packet_anywhere_is_an_error(tmp_path: Path) -> None:
    data = clip(film(12, 240, 320))
    with av.open(io.BytesIO(data)) as container:
        places = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size > 100]
    assert len(places) >= 6
    for start, size in places:
        damaged = bytearray(data)
        damaged[start + size // 2 : start + size] = b"\xaa" * (size - size // 2)
        assert "damaged" in refused(saved(tmp_path, bytes(damaged)))


@pytest.mark.parametrize("name", WHOLE)
def test_a_mutated_clip_gives_frames_or_one_error(tmp_path: Path, name: str) -> None:
    for data in mutations(WHOLE[name](), 40):
        path = saved(tmp_path, data)
        try:
            info = reading.inspect(path)
        except InvalidInput as error:
            assert error.param == "input_reference"
        else:
            assert read(path, 2, "last").shape == (2, info.height, info.width, 3)
