"""The segments of a JPEG file: those of its metadata, and those that say how to decode it."""

import re
import struct
from collections.abc import Iterator
from typing import NamedTuple

from .metadata import PREFIX, without_thumbnail
from .photoshop import without_thumbnails

PROGRESSIVE, RESTART_INTERVAL = 0xC2, 0xDD
_SOI, _EOI, _SOS = 0xD8, 0xD9, 0xDA
_APP0, _APP1, _APP2, _APP13, _APP14, _COMMENT = 0xE0, 0xE1, 0xE2, 0xED, 0xEE, 0xFE
_NEXT_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd7\xff]")
_PHOTOSHOP, _JFIF = b"Photoshop 3.0\0", b"JFIF\0"
_JFIF_BYTES = 12  # before the size of the thumbnail


class Segment(NamedTuple):
    """A segment of a file; `body` is without the marker and the length."""

    marker: int
    body: bytes

    @property
    def is_metadata(self) -> bool:
        return _APP0 <= self.marker <= _APP0 + 15 or self.marker == _COMMENT

    @property
    def says_how_to_decode(self) -> bool:
        """Tell whether this is the JFIF or the Adobe segment, which describe the colours."""
        return self.marker in (_APP0, _APP14)


def kept_segments(segments: list[Segment]) -> list[Segment]:
    """Return the metadata of the original that still holds.

    Thumbnails and the index of further pictures are left out: these show the unedited picture.
    """
    kept = []
    for marker, body in (segment for segment in segments if segment.is_metadata):
        if marker == _APP2 and body.startswith(b"MPF\0"):
            continue
        if marker == _APP0 and not body.startswith(_JFIF):
            continue  # JFXX holds a thumbnail
        if marker == _APP0:
            body = body[:_JFIF_BYTES] + b"\0\0"  # a thumbnail of no pixels
        if marker == _APP1 and body.startswith(PREFIX):
            body = PREFIX + without_thumbnail(body.removeprefix(PREFIX))
        if marker == _APP13 and body.startswith(_PHOTOSHOP):
            body = _PHOTOSHOP + without_thumbnails(body.removeprefix(_PHOTOSHOP))
        kept.append(Segment(marker, body))
    return kept


def has_more(scans: bytes) -> bool:
    """Tell whether something follows the picture: a gain map, a video or a second picture.

    Args:
        scans: the compressed data, from the first scan's marker on.
    """
    for marker, start, _ in _walk(scans, 0):
        if marker == _EOI:
            return scans[start + 2 :].strip(b"\0") != b""
    return False


def split(data: bytes) -> tuple[list[Segment], bytes]:
    """Return the segments before the compressed data, and the rest from its marker on."""
    segments: list[Segment] = []
    for marker, start, end in _walk(data, 2):
        if marker == _SOS:
            return segments, data[start:]
        segments.append(Segment(marker, data[start + 4 : end]))
    raise ValueError("a JPEG file without compressed data")


def _walk(data: bytes, offset: int) -> Iterator[tuple[int, int, int]]:
    """Yield every segment's marker, and where the segment starts and ends.

    Compressed data, fill bytes and bytes that belong to no segment are passed over, as decoders do.
    """
    while (found := _NEXT_MARKER.search(data, offset)) is not None:
        offset = found.end() + int.from_bytes(data[found.end() : found.end() + 2], "big")
        yield found.group()[-1], found.start(), offset


def join(segments: list[Segment], compressed: bytes) -> bytes:
    """Make a file of segments and compressed data."""
    parts = [bytes([0xFF, _SOI])]
    for marker, body in segments:
        parts.append(struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body)
    return b"".join([*parts, compressed])
