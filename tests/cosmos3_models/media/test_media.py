"""Frames and waveforms to mp4, read back with a decoder."""

import io
import struct
from collections.abc import Iterator
from fractions import Fraction
from itertools import pairwise

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from cosmos3_models.media.mp4 import VideoTrack, VideoWriter, encode_chunks, encode_sound, encode_video, mux

RATE = 48_000
COLOURS = [(235, 30, 30), (30, 200, 40), (40, 60, 220), (250, 220, 20), (128, 128, 128), (10, 10, 10)]


def flat(colour: tuple[int, int, int], height: int = 64, width: int = 64, frames: int = 1) -> NDArray[np.uint8]:
    return np.full((frames, height, width, 3), colour, dtype=np.uint8)


def moving(frames: int = 9, height: int = 48, width: int = 80) -> NDArray[np.uint8]:
    """A bright bar that moves to the right over a gradient."""
    film = np.zeros((frames, height, width, 3), dtype=np.uint8)
    film[..., 1] = np.linspace(0, 120, width, dtype=np.uint8)
    for i in range(frames):
        film[i, :, 4 * i : 4 * i + 8] = (255, 240, 200)
    return film


def sine(channels: int = 2, seconds: float = 1.0, level: float = 0.5) -> NDArray[np.float32]:
    wave = level * np.sin(2 * np.pi * 440 * np.arange(int(RATE * seconds)) / RATE)
    return np.repeat(wave[None].astype(np.float32), channels, axis=0)


def write(frames: NDArray[np.uint8], chunk: int, fps: float = 24.0) -> VideoTrack:
    with VideoWriter(frames.shape[0], frames.shape[1], frames.shape[2], fps) as writer:
        for start in range(0, len(frames), chunk):
            writer.write(frames[start : start + chunk])
        return writer.finish()


def decode(mp4: bytes) -> NDArray[np.uint8]:
    with av.open(io.BytesIO(mp4)) as video:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)])


def decode_sound(mp4: bytes) -> NDArray[np.float32]:
    with av.open(io.BytesIO(mp4)) as video:
        return np.concatenate([frame.to_ndarray() for frame in video.decode(audio=0)], axis=1)


def top_level_boxes(mp4: bytes) -> Iterator[str]:
    at = 0
    while at < len(mp4):
        size, kind = struct.unpack(">I4s", mp4[at : at + 8])
        yield kind.decode()
        at += size


@pytest.mark.parametrize("colour", COLOURS)
def test_colours_come_back_as_they_were(colour: tuple[int, int, int]) -> None:
    with av.open(io.BytesIO(encode_video(flat(colour), None, 24, None))) as video:
        frame = next(video.decode(video=0))
        context = video.streams.video[0].codec_context
        assert (context.color_primaries, context.color_trc, context.colorspace, context.color_range) == (1, 1, 1, 1)
        assert context.pix_fmt == "yuv420p"
    # The matrix is written out here, so that tag and conversion cannot be wrong together (ITU-R BT.709, limited range).
    y, u, v = (plane[16, 16] for plane in _planes(frame))
    luma, blue, red = (y - 16) / 219, (u - 128) / 224, (v - 128) / 224
    rgb = [luma + 1.5748 * red, luma - 0.1873 * blue - 0.4681 * red, luma + 1.8556 * blue]
    assert np.abs(np.array(rgb) * 255 - colour).max() <= 4


def _planes(frame: av.VideoFrame) -> list[NDArray[np.float64]]:
    planes = []
    for plane in frame.planes:
        rows = np.frombuffer(plane, dtype=np.uint8).reshape(plane.height, plane.line_size)
        planes.append(rows[:, : plane.width].astype(np.float64))
    return planes


def test_the_picture_is_kept() -> None:
    film = np.repeat(np.repeat(moving(9, 24, 40), 4, axis=1), 4, axis=2)  # coarse, so that halved chroma costs little
    error = np.mean((decode(encode_video(film, None, 24, None)).astype(float) - film) ** 2)
    assert 10 * np.log10(255**2 / error) > 35


def test_chunks_do_not_change_the_bytes_and_neither_does_a_second_run() -> None:
    film = moving(13)
    whole = write(film, 13)
    assert write(film, 1) == whole
    assert write(film, 4) == whole


@pytest.mark.parametrize("fps", [1, 12.5, 24, 29.97, 60])
@pytest.mark.parametrize("frames", [1, 9])
@pytest.mark.parametrize("size", [(16, 16), (48, 80)])
def test_size_count_and_frame_rate_are_exact(fps: float, frames: int, size: tuple[int, int]) -> None:
    with av.open(io.BytesIO(encode_video(moving(frames, *size), None, fps, None))) as video:
        stream = video.streams.video[0]
        assert stream.codec_context.name == "h264"
        assert (stream.height, stream.width, stream.frames) == (*size, frames)
        rate = Fraction(fps).limit_denominator(10_000)
        assert stream.average_rate == rate
        assert abs(stream.duration * stream.time_base - frames / rate) < Fraction(1, 1000)


@pytest.mark.parametrize("channels", [1, 2])
def test_sound_keeps_pitch_level_and_start(channels: int) -> None:
    wave = sine(channels)
    wave[:, : RATE // 10] = 0  # the tone starts after a tenth of a second
    heard = decode_sound(encode_video(moving(25), wave, 24, RATE))
    assert heard.shape[0] == channels
    spectrum = np.abs(np.fft.rfft(heard[0, RATE // 4 : RATE // 4 * 3]))
    assert np.argmax(spectrum) * 2 == 440
    assert np.abs(heard[0, RATE // 4 : RATE // 4 * 3]).max() == pytest.approx(0.5, abs=0.05)
    start = int(np.argmax(np.abs(heard[0]) > 0.25)) / RATE
    assert start == pytest.approx(0.1, abs=1024 / RATE)


def test_a_waveform_beyond_full_scale_is_cut_there() -> None:
    assert encode_sound(sine(level=3.0), RATE) == encode_sound(sine(level=3.0).clip(-1, 1), RATE)


def test_encoding_while_chunks_come_gives_the_same_bytes() -> None:
    frames = moving()
    with VideoWriter(*frames.shape[:3], fps=24.0) as writer:
        track = encode_chunks(writer, (frames[start : start + 4] for start in range(0, len(frames), 4)))
    assert track == write(frames, chunk=9)


def test_the_muxed_file_has_both_tracks_and_its_index_in_front() -> None:
    track = write(moving(25), 8)
    both = mux(track.mp4, encode_sound(sine(), RATE))
    boxes = list(top_level_boxes(both))
    assert boxes.index("moov") < boxes.index("mdat")
    with av.open(io.BytesIO(both)) as video:
        assert [stream.codec_context.name for stream in video.streams] == ["h264", "aac"]
    assert np.array_equal(decode(both), decode(track.mp4))
    assert both == mux(track.mp4, encode_sound(sine(), RATE))


def test_packets_are_interleaved_by_time() -> None:
    with av.open(io.BytesIO(encode_video(moving(49), sine(seconds=2), 24, RATE))) as video:
        packets = sorted((p for p in video.demux() if p.dts is not None), key=lambda packet: packet.pos)
    times = [float(packet.dts * packet.time_base) for packet in packets]
    assert max(earlier - later for earlier, later in pairwise(times)) < 0.6


def test_the_thumbnail_is_a_small_jpeg_of_the_middle_frame() -> None:
    film = np.concatenate([flat(colour, 400, 640) for colour in COLOURS[:3]])
    with av.open(io.BytesIO(write(film, 3).thumbnail), format="mjpeg") as image:
        picture = next(image.decode(video=0)).to_ndarray(format="rgb24")
    assert picture.shape == (200, 320, 3)
    assert np.abs(picture[100, 160].astype(int) - COLOURS[1]).max() < 16


@pytest.mark.parametrize(("frames", "cells"), [(1, 1), (3, 3), (9, 9), (16, 16), (33, 16), (189, 16)])
def test_the_spritesheet_shows_frames_from_first_to_last_row_by_row(frames: int, cells: int) -> None:
    shades = np.linspace(0, 250, frames).astype(np.uint8)
    film = np.broadcast_to(shades[:, None, None, None], (frames, 64, 96, 3))
    with av.open(io.BytesIO(write(np.ascontiguousarray(film), 3).spritesheet), format="mjpeg") as image:
        sheet = next(image.decode(video=0)).to_ndarray(format="rgb24")
    columns = min(4, cells)
    assert sheet.shape == (64 * -(-cells // columns), 96 * columns, 3)
    means = [sheet[y : y + 64, x : x + 96].mean() for y in range(0, len(sheet), 64) for x in range(0, 96 * columns, 96)]
    assert np.all(np.diff(means[:cells]) > 0)
    assert abs(means[0] - shades[0]) < 4
    assert abs(means[cells - 1] - shades[-1]) < 20
    assert np.all(np.array(means[cells:]) < 4)


def test_the_same_frames_give_the_same_bytes_every_time() -> None:
    """They did not, one run in three, while x264 built its macroblock trees with AVX-512."""
    random = np.random.default_rng(0)
    film = random.integers(0, 255, (17, 16, 24, 3)).repeat(8, axis=1).repeat(8, axis=2)
    film = (film + random.integers(-20, 20, film.shape)).clip(0, 255).astype(np.uint8)
    assert len({write(film, chunk).mp4 for chunk in (1, 4, 17) * 4}) == 1


def test_a_wrong_number_of_frames_is_refused() -> None:
    with VideoWriter(3, 16, 16, 24) as writer:
        writer.write(flat((1, 2, 3), 16, 16, 2))
        with pytest.raises(ValueError, match="got 2, expected 3"):
            writer.finish()


@pytest.mark.parametrize(
    "frames",
    [flat((0, 0, 0), 32, 16), flat((0, 0, 0), 16, 16).astype(np.float32), flat((0, 0, 0), 16, 16)[0]],
    ids=["another size", "another type", "one dimension short"],
)
def test_frames_of_another_kind_are_refused(frames: NDArray[np.uint8]) -> None:
    with VideoWriter(1, 16, 16, 24) as writer, pytest.raises(ValueError, match="expected uint8"):
        writer.write(frames)


@pytest.mark.parametrize(
    "wave", [np.zeros((3, 10)), np.zeros(10), np.full((2, 10), np.nan)], ids=["3 channels", "1-d", "not finite"]
)
def test_waveforms_of_another_kind_are_refused(wave: NDArray[np.float32]) -> None:
    with pytest.raises(ValueError, match=r"expected finite \[1 or 2, samples\]"):
        encode_sound(wave.astype(np.float32), RATE)
