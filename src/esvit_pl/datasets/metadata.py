"""Image files without their metadata: a second try for a file whose metadata stops Pillow from reading its pixels."""

from __future__ import annotations

import re
import struct
import zlib
from contextlib import suppress

PNG = b"\x89PNG\r\n\x1a\n"
JPEG = b"\xff\xd8\xff"
# EXIF stays, because it holds the orientation; Pillow reads it apart from the pixels.
TIFF = {b"II*\0": "<", b"MM\0*": ">"}
PNG_KEPT = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND", b"eXIf")
# Sizes, places and kinds of pixels, orientation, tables and palettes.
TIFF_KEPT = {
    *range(256, 260),
    262,
    266,
    273,
    274,
    *range(277, 282),
    284,
    292,
    293,
    317,
    *range(320, 326),
    338,
    339,
    340,
}
TIFF_KEPT |= {341, 347, *range(512, 522), *range(529, 533)}
NO_TAG = 65000  # of the range for private use; Pillow keeps it and looks no further


def without_metadata(data: bytes) -> bytes | None:
    """The same file without metadata; None if it is not a PNG, JPEG, TIFF or AVIF, or is bare."""
    if data.startswith(PNG):
        bare = _png(data)
    elif data.startswith(JPEG):
        bare = _jpeg(data)
    elif data[:4] in TIFF:
        bare = _tiff(data, TIFF[data[:4]])
    elif data[4:8] == b"ftyp":
        # The names of the items that hold EXIF and XMP; what has another name is not looked at.
        bare = re.sub(rb"(?s)(infe.{8})(?:Exif|mime)", rb"\1free", data)
    else:
        return None
    return None if bare == data else bare


def _png(data: bytes) -> bytes:
    """Only the chunks that pixels are made of, and EXIF that arrived whole."""
    parts, at = [PNG], len(PNG)
    while at + 12 <= len(data):
        length, name = struct.unpack_from(">I4s", data, at)
        chunk = data[at : at + 12 + length]
        is_whole = len(chunk) == 12 + length and zlib.crc32(chunk[4:-4]) == int.from_bytes(chunk[-4:], "big")
        if name in PNG_KEPT and (is_whole or name != b"eXIf"):
            parts.append(chunk)
        at += 12 + length
    return b"".join(parts)


def _jpeg(data: bytes) -> bytes:
    """Only the segments that pixels are made of, EXIF, and whole marks of JFIF and Adobe, which tell the colours."""
    parts, at = [data[:2]], 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker, length = data[at + 1], int.from_bytes(data[at + 2 : at + 4], "big")
        segment = data[at : at + 2 + length]
        kept = {
            0xE0: segment[4:8] == b"JFIF" and length >= 16,
            0xE1: segment[4:10] == b"Exif\0\0",
            0xEE: segment[4:9] == b"Adobe" and length >= 14,
            0xFE: False,  # a comment
        }
        if kept.get(marker, not 0xE0 <= marker <= 0xEF):
            parts.append(segment)
        at += 2 + length
        if marker == 0xDA:  # the pixels begin
            break
    return b"".join([*parts, data[at:]])


def _tiff(data: bytes, order: str) -> bytes:
    """The tags of the first page that pixels do not need get a number that says nothing, and one byte each."""
    bare = bytearray(data)
    with suppress(struct.error):  # the list of tags is cut
        (start,) = struct.unpack_from(f"{order}I", data, 4)
        (count,) = struct.unpack_from(f"{order}H", data, start)
        for at in range(start + 2, start + 2 + 12 * count, 12):
            (tag,) = struct.unpack_from(f"{order}H", data, at)
            if tag not in TIFF_KEPT:
                struct.pack_into(f"{order}HHIxxxx", bare, at, NO_TAG, 1, 1)
    return bytes(bare)
