"""What a file is, found from its content, and whether it is complete."""

import os
import zlib
from codecs import BOM_UTF8, getincrementaldecoder
from collections.abc import Callable
from dataclasses import dataclass
from typing import BinaryIO, Literal

from cosmos3_models.media.limits import refusal

HEAD_BYTES = 16
EXPECTED = "a picture (PNG, JPEG, WebP) or a clip (mp4, mov, WebM, Matroska)"

# The brands of pictures in the container of mp4.
PICTURE_BRANDS = {b"avif", b"avis", b"heic", b"heix", b"heim", b"heis", b"hevc", b"mif1", b"msf1"}
# The first boxes of mp4 and of old QuickTime files, which lack the first one.
FIRST_BOXES = {b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip"}
NAMES_OF_OTHERS = {
    b"GIF8": "a GIF",
    b"BM": "a BMP picture",
    b"II*\0": "a TIFF picture",
    b"MM\0*": "a TIFF picture",
    b"%PDF": "a PDF document",
    b"PK\3\4": "a zip archive",
    b"#EXTM3U": "a playlist",
    b"<svg": "an SVG picture",
}
"""What is often sent by mistake; each name says more than the first bytes of its file."""

SEGMENT, CLUSTER = 0x18538067, 0x1F43B675  # of Matroska


@dataclass(frozen=True)
class Format:
    """A file format that is read.

    Attributes:
        demuxer: FFmpeg's name for a clip's container, and Pillow's for a picture's format.
        is_whole: whether the file ends where its own structure says.
    """

    kind: Literal["image", "video"]
    demuxer: str
    is_whole: Callable[[BinaryIO], bool]


def format_of(file: BinaryIO) -> Format:
    """Find the format of a file, and check that the file is complete.

    Raises:
        InvalidInput: it is none of the formats, or it is truncated.
    """
    file.seek(0)
    head = file.read(HEAD_BYTES)
    found = _recognised(head)
    if found is None:
        raise refusal(_description(head), EXPECTED, "other files cannot be read")
    if not found.is_whole(file):
        raise refusal(f"a truncated {found.demuxer} file", "a whole one", "it ends before its own structure does")
    file.seek(0)
    return found


def _recognised(head: bytes) -> Format | None:
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return Format("image", "PNG", _png_is_whole)
    if head.startswith(b"\xff\xd8\xff"):
        return Format("image", "JPEG", _jpeg_is_whole)
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return Format("image", "WebP", _webp_is_whole)
    if head[4:8] in FIRST_BOXES and not _holds_a_picture(head):
        return Format("video", "mp4", _boxes_are_whole)
    if head.startswith(b"\x1a\x45\xdf\xa3"):
        return Format("video", "matroska", _elements_are_whole)
    return None


def _holds_a_picture(head: bytes) -> bool:
    return head[4:8] == b"ftyp" and head[8:12] in PICTURE_BRANDS


def _description(head: bytes) -> str:
    if not head:
        return "an empty file"
    if _holds_a_picture(head):
        return "a HEIF or AVIF picture"
    names = [name for start, name in NAMES_OF_OTHERS.items() if head.startswith(start)]
    if names:
        return names[0]
    return "a text file" if _is_text(head) else f"a file that starts with {head[:8].hex(' ')}"


def _is_text(head: bytes) -> bool:
    try:
        text = getincrementaldecoder("utf-8")().decode(head.removeprefix(BOM_UTF8))  # the last character may be cut
    except UnicodeDecodeError:
        return False
    return all(character.isprintable() or character.isspace() for character in text)


def _png_is_whole(file: BinaryIO) -> bool:
    """Check each chunk's length and checksum, up to the end mark. Pillow ignores those of pixel data."""
    file.seek(8)
    while len(head := file.read(8)) == 8:
        length = int.from_bytes(head[:4])
        body = file.read(length)
        checksum = file.read(4)
        if len(body) < length or zlib.crc32(body, zlib.crc32(head[4:])).to_bytes(4) != checksum:
            return False
        if head[4:] == b"IEND":
            return True
    return False


def _jpeg_is_whole(file: BinaryIO) -> bool:
    """Neither mark can stand within coded pixels, so the last scan has an end mark behind it."""
    file.seek(0)
    data = file.read()
    return data.rfind(b"\xff\xd9") > data.rfind(b"\xff\xda") > 0


def _webp_is_whole(file: BinaryIO) -> bool:
    file.seek(4)
    return 8 + int.from_bytes(file.read(4), "little") <= _size(file)


def _boxes_are_whole(file: BinaryIO) -> bool:
    """Whether the boxes of an mp4, side by side, fill the file."""
    at, size = 0, _size(file)
    while at < size:
        file.seek(at)
        head = file.read(16)
        length = int.from_bytes(head[:4])
        if length == 0:  # the last box may leave its length open
            return True
        if length == 1:
            length = int.from_bytes(head[8:16])
        if length < 8:
            return False
        at += length
    return at == size


def _elements_are_whole(file: BinaryIO) -> bool:
    """Whether the elements of a Matroska file fill it, down to single blocks, because live clips leave lengths open."""
    at, size = 0, _size(file)
    while at < size:
        file.seek(at)
        head = file.read(12)
        name_length = _number_length(head)
        name, rest = int.from_bytes(head[:name_length]), head[name_length:]
        length_length = _number_length(rest)
        length = int.from_bytes(rest[:length_length]) & (2 ** (7 * length_length) - 1)
        is_open = length == 2 ** (7 * length_length) - 1
        body = at + name_length + length_length
        if name_length > 4 or length_length > 8 or (is_open and name not in (SEGMENT, CLUSTER)):
            return False
        if not is_open and body + length > size:
            return False
        at = body if name in (SEGMENT, CLUSTER) else body + length
    return at == size


def _number_length(data: bytes) -> int:
    """Bytes of a number in EBML: one more than the leading zeros of its first byte."""
    return 9 - data[0].bit_length() if data else 9


def _size(file: BinaryIO) -> int:
    return file.seek(0, os.SEEK_END)
