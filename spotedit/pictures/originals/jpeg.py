"""JPEG: the original's quantisation tables, sampling and metadata.

A JPEG file is a list of segments, each with a marker, up to the compressed data. The metadata lies
in segments of its own, which are taken from the original as they are.
"""

import struct
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

from PIL import Image, JpegImagePlugin

from ..composite import Placed, paste
from ..pixels import Pixels, pixels_of
from .metadata import PREFIX, Metadata, without_thumbnail
from .photoshop import without_thumbnails
from .rewritten import NEEDS_PHOTOS, Rewritten

_SOI, _SOS = 0xD8, 0xDA
_APP0, _APP1, _APP2, _APP13, _APP14, _COMMENT = 0xE0, 0xE1, 0xE2, 0xED, 0xEE, 0xFE
_PHOTOSHOP = b"Photoshop 3.0\0"
_SUBSAMPLINGS = {0: "4:4:4", 1: "4:2:2", 2: "4:2:0"}
QUALITY = 95  # of new files


class Segment(NamedTuple):
    """A segment of a file; `body` is without the marker and the length."""

    marker: int
    body: bytes

    @property
    def is_metadata(self) -> bool:
        return _APP0 <= self.marker <= _APP0 + 15 or self.marker == _COMMENT

    @property
    def says_how_to_decode(self) -> bool:
        """Whether it is the JFIF or the Adobe segment, which say what the colours are."""
        return self.marker in (_APP0, _APP14)


def rewritten(path: Path, edit: Placed) -> Rewritten:
    """Return the file with the edit in it, re-encoded with the original's tables and sampling."""
    data = path.read_bytes()
    segments, _ = split(data)
    kept, notes = kept_segments(segments)
    with Image.open(BytesIO(data)) as image:
        assert isinstance(image, JpegImagePlugin.JpegImageFile)
        options = {
            "qtables": image.quantization,
            "subsampling": _SUBSAMPLINGS.get(JpegImagePlugin.get_sampling(image), "4:4:4"),
            "progressive": bool(image.info.get("progressive")),
            "optimize": True,
            "dpi": image.info.get("dpi", (0, 0)),
        }
        pixels = pixels_of(image)
    paste(pixels, edit)
    new_segments, compressed = split(_encode(pixels, options))
    notes.append(
        "JPEG is lossy: all of the picture was encoded again, with the original's quantisation "
        f"tables, so pixels outside the region differ by little; {NEEDS_PHOTOS}"
    )
    decoding = [segment for segment in new_segments if segment.says_how_to_decode]
    described = [segment for segment in kept if not segment.says_how_to_decode]
    coding = [segment for segment in new_segments if not segment.is_metadata]
    return Rewritten(join([*decoding, *described, *coding], compressed), notes)


def encode(pixels: Pixels, metadata: Metadata) -> bytes:
    """Make a new file of 8-bit pixels without alpha."""
    options = {"quality": QUALITY, "subsampling": "4:4:4", "optimize": True}
    if metadata.exif:
        options["exif"] = PREFIX + metadata.exif
    if metadata.profile:
        options["icc_profile"] = metadata.profile
    if metadata.xmp:
        options["xmp"] = metadata.xmp
    if metadata.dpi:
        options["dpi"] = tuple(round(value) for value in metadata.dpi)
    return _encode(pixels, options)


def _encode(pixels: Pixels, options: dict) -> bytes:
    file = BytesIO()
    pixels.to_image().save(file, "JPEG", **options)
    return file.getvalue()


def kept_segments(segments: list[Segment]) -> tuple[list[Segment], list[str]]:
    """Return the metadata of the original that still holds, and what does not.

    Thumbnails and pictures after the picture show the unedited one, so they are left out.
    """
    kept, notes = [], []
    for segment in segments:
        marker, body = segment
        if not segment.is_metadata:
            continue
        if marker == _APP2 and body.startswith(b"MPF\0"):
            notes.append(
                "the second picture in the file (a gain map or preview), which is not edited, "
                "is left out"
            )
            continue
        if marker == _APP1 and body.startswith(PREFIX):
            body = PREFIX + without_thumbnail(body.removeprefix(PREFIX))
        if marker == _APP13 and body.startswith(_PHOTOSHOP):
            body = _PHOTOSHOP + without_thumbnails(body.removeprefix(_PHOTOSHOP))
        if marker == _APP0 and not body.startswith(b"JFIF\0"):
            continue  # JFXX holds a thumbnail
        kept.append(Segment(marker, body))
    return kept, notes


def split(data: bytes) -> tuple[list[Segment], bytes]:
    """Return the segments before the compressed data, and the rest from its marker on."""
    segments: list[Segment] = []
    offset = 2
    while True:
        while data[offset + 1] == 0xFF:  # fill bytes
            offset += 1
        marker = data[offset + 1]
        if marker == _SOS:
            return segments, data[offset:]
        (length,) = struct.unpack_from(">H", data, offset + 2)
        segments.append(Segment(marker, data[offset + 4 : offset + 2 + length]))
        offset += 2 + length


def join(segments: list[Segment], compressed: bytes) -> bytes:
    """Make a file of segments and compressed data."""
    parts = [bytes([0xFF, _SOI])]
    for marker, body in segments:
        parts.append(struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body)
    return b"".join([*parts, compressed])
