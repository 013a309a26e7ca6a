"""Photoshop's list of resources, which JPEG and TIFF files carry."""

import struct

_SIGNATURE = b"8BIM"
_THUMBNAILS = (0x0409, 0x040C)


def without_thumbnails(resources: bytes) -> bytes:
    """Return the list without thumbnails, which show the unedited picture."""
    parts, offset = [], 0
    while resources[offset : offset + 4] == _SIGNATURE and offset + 12 <= len(resources):
        (kind,) = struct.unpack_from(">H", resources, offset + 4)
        name_bytes = (resources[offset + 6] + 2) // 2 * 2  # with its length, padded to be even
        size_offset = offset + 6 + name_bytes
        if size_offset + 4 > len(resources):
            break
        (size,) = struct.unpack_from(">I", resources, size_offset)
        end = size_offset + 4 + (size + 1) // 2 * 2
        if kind not in _THUMBNAILS:
            parts.append(resources[offset:end])
        offset = end
    return b"".join([*parts, resources[offset:]])
