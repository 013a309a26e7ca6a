"""PNG: new pixels, and every other chunk of the original, byte for byte."""

import struct
import zlib
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from ..composite import Placed, paste
from ..pixels import Pixels, pixels_of
from .metadata import Metadata, without_thumbnail
from .rewritten import NEEDS_PHOTOS, Rewritten

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_ANIMATION = (b"acTL", b"fcTL", b"fdAT")
# These describe the samples, so they hold only while the samples have the same type.
_OF_SAMPLES = (b"PLTE", b"tRNS", b"hIST", b"bKGD", b"sBIT", b"sPLT")
_COLOUR_TYPES = {0: "L", 2: "RGB", 4: "LA", 6: "RGBA"}
_METRES_PER_INCH = 0.0254


class _Chunk(NamedTuple):
    kind: bytes
    body: bytes


def rewritten(path: Path, edit: Placed) -> Rewritten:
    """Return the file with the edit in it. Pixels without the edit are the original's, exactly."""
    data = path.read_bytes()
    chunks = _chunks(data)
    pixels, notes = read(data)
    header = chunks[0].body
    if header[9] == 3:
        notes.append("a palette cannot hold the edit: the file has full colours now")
    if any(chunk.kind in _ANIMATION for chunk in chunks):
        notes.append("the file was an animation: only its first picture is kept")
    notes += paste(pixels, edit)
    first = next(index for index, chunk in enumerate(chunks) if chunk.kind == b"IDAT")
    new = _chunks(_encode(pixels))
    same_samples = new[0].body[8:10] == header[8:10]
    kept = [_edited(chunk) for chunk in chunks]
    before = [chunk for chunk in kept[1:first] if _is_kept(chunk, same_samples)]
    after = [chunk for chunk in kept[first:-1] if _is_kept(chunk, same_samples)]
    return Rewritten(_join(new, before, after), notes)


def encode(pixels: Pixels, metadata: Metadata) -> bytes:
    """Make a new file."""
    before = []
    if metadata.profile:
        before.append(_Chunk(b"iCCP", b"ICC profile\0\0" + zlib.compress(metadata.profile)))
    if metadata.dpi:
        along_x, along_y = (round(value / _METRES_PER_INCH) for value in metadata.dpi)
        before.append(_Chunk(b"pHYs", struct.pack(">IIB", along_x, along_y, 1)))
    if metadata.exif:
        before.append(_Chunk(b"eXIf", metadata.exif))
    if metadata.xmp:
        before.append(_Chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + metadata.xmp))
    return _join(_chunks(_encode(pixels)), before, [])


def read(data: bytes) -> tuple[Pixels, list[str]]:
    """Return the pixels with all their bits, and what could not be read."""
    depth, colour_type = data[24], data[25]
    notes = []
    with Image.open(BytesIO(data)) as image:
        if depth == 16 and colour_type != 0:
            try:
                from imagecodecs import png_decode
            except ImportError:
                notes.append(f"the file has 16 bits a channel and keeps 8; {NEEDS_PHOTOS}")
            else:
                image.verify()  # the checksums, which imagecodecs does not report
                mode, profile = _COLOUR_TYPES[colour_type], image.info.get("icc_profile")
                return Pixels(np.array(png_decode(data)), mode, profile), notes
        return pixels_of(image), notes


def _encode(pixels: Pixels) -> bytes:
    """Encode the pixels alone."""
    if pixels.is_deep and pixels.mode != "L":
        from imagecodecs import png_encode

        return bytes(png_encode(np.ascontiguousarray(pixels.values), level=6))
    file = BytesIO()
    pixels.to_image().save(file, "PNG")
    return file.getvalue()


def _chunks(data: bytes) -> list[_Chunk]:
    chunks, offset = [], len(_SIGNATURE)
    while offset + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, offset)
        chunks.append(_Chunk(kind, data[offset + 8 : offset + 8 + length]))
        offset += length + 12
        if kind == b"IEND":
            break
    return chunks


def _edited(chunk: _Chunk) -> _Chunk:
    return chunk._replace(body=without_thumbnail(chunk.body)) if chunk.kind == b"eXIf" else chunk


def _is_kept(chunk: _Chunk, same_samples: bool) -> bool:
    if chunk.kind in (b"IDAT", *_ANIMATION):
        return False
    return same_samples or chunk.kind not in _OF_SAMPLES


def _join(new: Sequence[_Chunk], before: Sequence[_Chunk], after: Sequence[_Chunk]) -> bytes:
    """Put chunks around the pixels of a new file, whose own other chunks are left out."""
    pixels = [chunk for chunk in new if chunk.kind == b"IDAT"]
    parts = [_SIGNATURE]
    for kind, body in (new[0], *before, *pixels, *after, new[-1]):
        checksum = zlib.crc32(kind + body)
        parts.append(struct.pack(">I", len(body)) + kind + body + struct.pack(">I", checksum))
    return b"".join(parts)
