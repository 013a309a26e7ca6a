"""JPEG: the original's quantisation tables, sampling and metadata.

A JPEG file is a list of segments, each with a marker, up to the compressed data. The metadata lies
in segments of its own, which are taken from the original as they are.
"""

from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image, JpegImagePlugin

from ..composite import Placed, paste
from ..pixels import Pixels, pixels_of
from . import jpeg_blocks
from .jpeg_segments import PROGRESSIVE, RESTART_INTERVAL, has_more, join, kept_segments, split
from .metadata import PREFIX, Metadata
from .rewritten import Rewritten

_SUBSAMPLINGS = {0: "4:4:4", 1: "4:2:2", 2: "4:2:0"}
QUALITY = 95  # of new files


def rewritten(path: Path, edit: Placed) -> Rewritten:
    """Return the file with the edit in it.

    The rest of the picture is not encoded again, if `jpeg_blocks` can handle the file.
    """
    data = path.read_bytes()
    segments, scans = split(data)
    kept, notes = kept_segments(segments), []
    if has_more(scans):
        notes.append(
            "what follows the picture in the file (a gain map, a video or another picture) is left "
            "out, because it shows the unedited picture"
        )
    if any(segment.marker in (PROGRESSIVE, RESTART_INTERVAL) for segment in segments):
        notes.append(
            "the JPEG is a plain sequential one now, without progressive scans and restart "
            "markers, which changes no pixel"
        )
    try:
        result = jpeg_blocks.rewritten(data, segments, scans, kept, edit)
        return Rewritten(result.data, notes + result.notes)
    except jpeg_blocks.Unsupported as unsupported:
        notes.append(
            "JPEG is lossy: all of the picture was encoded again, with the original's quantisation "
            f"tables, so pixels outside the region differ by little ({unsupported})"
        )
    with Image.open(BytesIO(data)) as image:
        assert isinstance(image, JpegImagePlugin.JpegImageFile)
        options = {
            "qtables": image.quantization,
            "subsampling": _SUBSAMPLINGS.get(JpegImagePlugin.get_sampling(image), "4:4:4"),
            "dpi": image.info.get("dpi", (0, 0)),
        }
        pixels = pixels_of(image)
    notes += paste(pixels, edit)
    new_segments, new_scans = split(_encode(pixels, options))
    decoding = [segment for segment in new_segments if segment.says_how_to_decode]
    described = [segment for segment in kept if not segment.says_how_to_decode]
    coding = [segment for segment in new_segments if not segment.is_metadata]
    return Rewritten(join([*decoding, *described, *coding], new_scans), notes)


def encode(pixels: Pixels, metadata: Metadata) -> bytes:
    """Make a new file of 8-bit pixels without alpha."""
    options: dict[str, Any] = {"quality": QUALITY, "subsampling": "4:4:4"}
    if metadata.exif:
        options["exif"] = PREFIX + metadata.exif
    if metadata.profile:
        options["icc_profile"] = metadata.profile
    if metadata.xmp:
        options["xmp"] = metadata.xmp
    if metadata.dpi:
        options["dpi"] = tuple(round(value) for value in metadata.dpi)
    return _encode(pixels, options)


def _encode(pixels: Pixels, options: dict[str, Any]) -> bytes:
    # Pillow cannot write noisy pictures of a high quality with `progressive` or `optimize`
    file = BytesIO()
    pixels.to_image().save(file, "JPEG", **options)
    return file.getvalue()
