"""The segments of a JPEG file: those of its metadata, and those that say how to decode it."""

import re
import struct
from typing import NamedTuple

from .metadata import PREFIX, without_thumbnail
from .photoshop import without_thumbnails

SOI, SOS, DHT, DAC, DRI = 0xD8, 0xDA, 0xC4, 0xCC, 0xDD
APP0, _APP1, _APP2, _APP13, APP14, _COMMENT = 0xE0, 0xE1, 0xE2, 0xED, 0xEE, 0xFE
_FRAMES = (*range(0xC0, 0xC4), *range(0xC5, 0xC8), *range(0xC9, 0xCC), *range(0xCD, 0xD0))
_EOI = 0xD9
_NEXT_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd7\xff]")
_PHOTOSHOP, _JFIF = b"Photoshop 3.0\0", b"JFIF\0"
_JFIF_BYTES = 12  # before the size of the thumbnail


class Segment(NamedTuple):
    """A segment of a file; `body` is without the marker and the length."""

    marker: int
    body: bytes

    @property
    def is_metadata(self) -> bool:
        return APP0 <= self.marker <= APP0 + 15 or self.marker == _COMMENT

    @property
    def is_frame(self) -> bool:
        """Whether it is the frame header, which has the size and the components."""
        return self.marker in _FRAMES

    @property
    def says_how_to_decode(self) -> bool:
        """Whether it is the JFIF or the Adobe segment, which say what the colours are."""
        return self.marker in (APP0, APP14)


def kept_segments(segments: list[Segment]) -> list[Segment]:
    """Return the metadata of the original that still holds.

    Thumbnails and the index of further pictures are left out: these show the unedited picture.
    """
    kept = []
    for marker, body in (segment for segment in segments if segment.is_metadata):
        if marker == _APP2 and body.startswith(b"MPF\0"):
            continue
        if marker == APP0 and not body.startswith(_JFIF):
            continue  # JFXX holds a thumbnail
        if marker == APP0:
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
    offset = 0
    while (found := _NEXT_MARKER.search(scans, offset)) is not None:
        marker, end = found.group()[-1], found.end()
        if marker == _EOI:
            return scans[end:].strip(b"\0") != b""
        offset = end + int.from_bytes(scans[end : end + 2], "big")
    return False


def split(data: bytes) -> tuple[list[Segment], bytes]:
    """Return the segments before the compressed data, and the rest from its marker on."""
    segments: list[Segment] = []
    offset = 2
    while True:
        while data[offset + 1] == 0xFF:  # fill bytes
            offset += 1
        marker = data[offset + 1]
        if marker == SOS:
            return segments, data[offset:]
        (length,) = struct.unpack_from(">H", data, offset + 2)
        segments.append(Segment(marker, data[offset + 4 : offset + 2 + length]))
        offset += 2 + length


def join(segments: list[Segment], compressed: bytes) -> bytes:
    """Make a file of segments and compressed data."""
    parts = [bytes([0xFF, SOI])]
    for marker, body in segments:
        parts.append(struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body)
    return b"".join([*parts, compressed])
