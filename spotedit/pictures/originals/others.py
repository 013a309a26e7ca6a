"""WebP, AVIF, HEIC and BMP, through Pillow."""

import struct
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

from ..composite import Placed, paste
from ..pixels import Pixels, pixels_of
from .metadata import PREFIX, Metadata, metadata_of
from .rewritten import Rewritten

_LOSSY: Mapping[str, Mapping[str, Any]] = {
    "WEBP": {"quality": 95},
    "AVIF": {"quality": 90, "subsampling": "4:4:4"},
    "HEIF": {"quality": 90, "chroma": 444},
}
_LOSSLESS: Mapping[str, Mapping[str, Any]] = {
    "WEBP": {"lossless": True, "exact": True},  # exact: also the colours of transparent pixels
    "BMP": {},
}


def rewritten(path: Path, edit: Placed) -> Rewritten:
    """Return the file with the edit in it. It is encoded anew, lossless if the original is."""
    data = path.read_bytes()
    with Image.open(BytesIO(data)) as image:
        image_format = str(image.format)
        is_animation = getattr(image, "n_frames", 1) > 1
        depth = _bits(data, image)
        metadata = metadata_of(image)
        chroma = image.info.get("chroma")  # of HEIC: 420, 422 or 444
        pixels = pixels_of(image)
    notes = []
    if is_animation:
        notes.append("the file was an animation: only its first picture is kept")
    if depth > 8:
        notes.append(f"the file has {depth} bits a channel and keeps 8")
    is_lossless = image_format == "BMP" or (image_format == "WEBP" and _is_lossless_webp(data))
    if not is_lossless:
        name = "HEIC" if image_format == "HEIF" else image_format
        notes.append(
            f"{name} is lossy: all of the picture was encoded again, so pixels outside the "
            "region differ by little; write to a .png or .tif file to keep them exactly"
        )
    notes += paste(pixels, edit)
    return Rewritten(encode(pixels, metadata, image_format, is_lossless, chroma), notes)


def encode(
    pixels: Pixels,
    metadata: Metadata,
    image_format: str,
    is_lossless: bool,
    chroma: int | None = None,
) -> bytes:
    """Make a file of pixels that the format can hold.

    Args:
        chroma: sampling of the colours in a HEIC file. Many viewers open no other than 420, which
            cameras write, so an original's own is kept.
    """
    options = dict((_LOSSLESS if is_lossless else _LOSSY)[image_format])
    if chroma is not None and image_format == "HEIF":
        options["chroma"] = chroma
    if image_format == "BMP":
        if metadata.dpi:
            options["dpi"] = metadata.dpi
    else:
        if metadata.exif:
            options["exif"] = PREFIX + metadata.exif
        if metadata.profile:
            options["icc_profile"] = metadata.profile
        if metadata.xmp:
            options["xmp"] = metadata.xmp
    file = BytesIO()
    pixels.to_image().save(file, image_format, **options)
    return file.getvalue()


def _is_lossless_webp(data: bytes) -> bool:
    """Look for the chunk of the pixels, which comes after the profile of the colours."""
    offset = 12
    while offset + 8 <= len(data):
        kind, size = struct.unpack_from("<4sI", data, offset)
        if kind in (b"VP8 ", b"VP8L"):
            return bool(kind == b"VP8L")
        # a frame of an animation has 16 bytes before the chunks in it
        offset += 8 + (16 if kind == b"ANMF" else size + size % 2)
    return False


def _bits(data: bytes, image: Image.Image) -> int:
    """Return the bits a channel of an AVIF or HEIC file, of which Pillow reads 8."""
    configuration = data.find(b"av1C", 0, 4096)
    if image.format == "AVIF" and configuration >= 0:
        flags = data[configuration + 6]
        is_deep, is_12 = flags & 0x40, flags & 0x20
        return 12 if is_deep and is_12 else 10 if is_deep else 8
    return int(image.info.get("bit_depth", 8))
