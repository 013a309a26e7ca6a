"""What a picture file says about its pixels: EXIF, ICC profile, XMP and resolution."""

import re
import struct
from dataclasses import dataclass, replace

from PIL import ExifTags, Image

PREFIX = b"Exif\x00\x00"
_ORIENTATION = 0x0112
_THUMBNAIL_OFFSET, _THUMBNAIL_LENGTH = 0x0201, 0x0202
_ENTRY_BYTES = 12
_XMP_ORIENTATION = re.compile(rb"(tiff:Orientation(?:=[\"']|>))\d")
# Of a TIFF file's own tags, those that describe the picture and not where its pixels lie.
_DESCRIPTIONS = (270, 271, 272, 305, 306, 315, 316, 33432)
_SUB_DIRECTORIES = (ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo)


@dataclass(frozen=True)
class Metadata:
    """What is carried from the original to a file of another format.

    Attributes:
        exif: the EXIF data without a prefix, or None.
        profile: the ICC profile, or None.
        xmp: the XMP packet, or None.
        dpi: resolution along the width and the height, or None.
    """

    exif: bytes | None = None
    profile: bytes | None = None
    xmp: bytes | None = None
    dpi: tuple[float, float] | None = None

    def upright(self) -> "Metadata":
        """Return the same data with orientation 1, for pixels that have been turned."""
        exif = self.exif and with_orientation_1(self.exif)
        xmp = self.xmp and _XMP_ORIENTATION.sub(rb"\g<1>1", self.xmp)
        return replace(self, exif=exif, xmp=xmp)

    def without_profile(self) -> "Metadata":
        """Return the same data without the ICC profile."""
        return replace(self, profile=None)


def metadata_of(image: Image.Image) -> Metadata:
    """Read the metadata of an opened picture. The thumbnail is left out: it shows no edit."""
    xmp = image.info.get("xmp", image.info.get("XML:com.adobe.xmp"))
    dpi = image.info.get("dpi")
    return Metadata(
        exif=_exif_of(image),
        profile=image.info.get("icc_profile"),
        xmp=xmp.encode() if isinstance(xmp, str) else xmp,
        dpi=None if dpi is None else (float(dpi[0]), float(dpi[1])),
    )


def _exif_of(image: Image.Image) -> bytes | None:
    if image.format == "TIFF":
        return _exif_of_tiff(image)
    exif = image.info.get("exif")
    return without_thumbnail(exif.removeprefix(PREFIX)) if exif else None


def _exif_of_tiff(image: Image.Image) -> bytes | None:
    """Make EXIF data of the tags of a TIFF file that describe its picture."""
    tags, kept = image.getexif(), Image.Exif()
    for tag in (*_DESCRIPTIONS, _ORIENTATION):
        if tag in tags:
            kept[tag] = tags[tag]
    for directory in _SUB_DIRECTORIES:
        if entries := tags.get_ifd(directory):
            kept.get_ifd(directory).update(entries)
            kept[directory] = entries
    return kept.tobytes().removeprefix(PREFIX) if kept else None


def with_orientation_1(exif: bytes) -> bytes:
    """Return EXIF data of the same length whose orientation is 1, if it has one."""
    try:
        order, entries, _ = _first_directory(exif)
    except (struct.error, ValueError):
        return exif
    changed = bytearray(exif)
    for offset in entries:
        (tag,) = struct.unpack_from(order + "H", exif, offset)
        if tag == _ORIENTATION:
            struct.pack_into(order + "HIHH", changed, offset + 2, 3, 1, 1, 0)
    return bytes(changed)


def without_thumbnail(exif: bytes) -> bytes:
    """Return EXIF data of the same length without the thumbnail, which shows the unedited picture.

    Nothing moves, because camera makers' notes hold offsets. The bytes of the thumbnail become 0.
    """
    try:
        order, _, link = _first_directory(exif)
        (second,) = struct.unpack_from(order + "I", exif, link)
        if second == 0:
            return exif
        changed = bytearray(exif)
        struct.pack_into(order + "I", changed, link, 0)
        _, entries, _ = _directory(exif, order, second)
        values = {
            tag: value
            for tag, _, _, value in (struct.unpack_from(order + "HHII", exif, at) for at in entries)
        }
        start, length = values.get(_THUMBNAIL_OFFSET, 0), values.get(_THUMBNAIL_LENGTH, 0)
        end = min(start + length, len(changed))
        if start:
            changed[start:end] = bytes(end - start)
        return bytes(changed)
    except (struct.error, ValueError):
        return exif


def _first_directory(exif: bytes) -> tuple[str, list[int], int]:
    """Return the byte order, the offsets of the entries, and the offset of the link to the next."""
    order = {b"II": "<", b"MM": ">"}.get(exif[:2])
    if order is None:
        raise ValueError("not EXIF data")
    (start,) = struct.unpack_from(order + "I", exif, 4)
    return _directory(exif, order, start)


def _directory(exif: bytes, order: str, start: int) -> tuple[str, list[int], int]:
    (count,) = struct.unpack_from(order + "H", exif, start)
    first = start + 2
    link = first + count * _ENTRY_BYTES
    if link + 4 > len(exif):
        raise ValueError("the EXIF data is cut short")
    return order, list(range(first, link, _ENTRY_BYTES)), link
