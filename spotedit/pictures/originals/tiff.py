"""TIFF: only the strips or tiles that the edit touches are written, into a copy of the file.

So all tags and further pages stay, byte for byte. A kind of TIFF that cannot be changed in this way
is written anew.
"""

from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..composite import Edges, Placed, paste
from ..pixels import Pixels, pixels_of
from .metadata import PREFIX, Metadata
from .orientation import as_shown, orientation
from .photoshop import without_thumbnails
from .rewritten import NEEDS_PHOTOS, Rewritten

_GREY, _RGB, _CMYK = 1, 2, 5  # values of PhotometricInterpretation
_STRAIGHT_ALPHA = 2  # of ExtraSamples: the colours are not multiplied by alpha
_MODES = {
    (_GREY, 1): "L",
    (_GREY, 2): "LA",
    (_RGB, 3): "RGB",
    (_RGB, 4): "RGBA",
    (_CMYK, 4): "CMYK",
}
_COMPRESSIONS = (1, 5, 8, 32773, 32946, 50000)  # none, LZW, deflate, PackBits, deflate, zstd
_PREDICTORS = (1, 2)  # none, the difference to the pixel on the left
_STRIP_TAGS, _TILE_TAGS = (273, 279), (324, 325)  # offsets and byte counts
_PHOTOSHOP, _LAYERS = 34377, 37724


class _Unsupported(Exception):
    """Raised when the strips of a file cannot be changed one by one."""


def rewritten(path: Path, edit: Placed) -> Rewritten | None:
    """Return the file with the edit in it, or None if it has to be written anew."""
    try:
        tifffile = _tifffile()
    except ImportError:
        return None
    file = BytesIO(path.read_bytes())
    with tifffile.TiffFile(file, mode="r+b") as tiff:
        page: Any = tiff.pages[0]
        try:
            array, pixels = _open(page)
        except _Unsupported:
            return None
        notes = paste(pixels, edit)
        height, width, _ = pixels.values.shape
        _replace_segments(file, page, array, edit.extent((width, height)))
        notes += _clean(tiff, page)
    return Rewritten(file.getvalue(), notes)


def read(path: Path, image: Image.Image) -> tuple[Pixels, list[str]]:
    """Return the pixels in the file's order and with all their bits, and what could not be read."""
    try:
        with _tifffile().TiffFile(path) as tiff:
            _, pixels = _open(tiff.pages[0])
            return pixels, []
    except (ImportError, _Unsupported):
        pass
    turn = orientation(image)
    bits = max(image.tag_v2.get(258, (8,)))  # type: ignore[attr-defined]  # BitsPerSample
    pixels = pixels_of(image)  # Pillow turns a TIFF when it loads the pixels
    pixels.values = as_shown(pixels.values, {6: 8, 8: 6}.get(turn, turn))
    lost = bits > 8 and not pixels.is_deep
    note = f"the file has {bits} bits a channel and keeps 8; {NEEDS_PHOTOS}"
    return pixels, [note] if lost else []


def encode(pixels: Pixels, metadata: Metadata) -> tuple[bytes, list[str]]:
    """Make a new file, and say what it could not take."""
    file = BytesIO()
    if pixels.is_deep and pixels.mode != "L":
        import tifffile

        tifffile.imwrite(
            file,
            pixels.values,
            photometric={"LA": "minisblack", "CMYK": "separated"}.get(pixels.mode, "rgb"),
            extrasamples=["unassalpha"] if pixels.has_alpha else None,
            compression="zlib",
            predictor=True,
            iccprofile=metadata.profile,
            resolution=metadata.dpi,
            resolutionunit="inch" if metadata.dpi else None,
            extratags=[(700, "B", len(metadata.xmp), metadata.xmp, True)] if metadata.xmp else (),
            metadata=None,
        )
        notes = ["the EXIF data is left out of a TIFF with 16 bits a channel"]
        return file.getvalue(), notes if metadata.exif else []
    exif = Image.Exif()
    if metadata.exif:
        exif.load(PREFIX + metadata.exif)
    # Pillow cannot write EXIF data into a compressed TIFF
    options: dict[str, Any] = {"exif": exif, "compression": None if exif else "tiff_adobe_deflate"}
    if metadata.profile:
        options["icc_profile"] = metadata.profile
    if metadata.xmp:
        exif[700] = metadata.xmp
    if metadata.dpi:
        options["dpi"] = metadata.dpi
    pixels.to_image().save(file, "TIFF", **options)
    return file.getvalue(), []


def _tifffile() -> Any:
    """Return tifffile, whose codecs, and our conversion of 16-bit colours, need imagecodecs.

    Raises:
        ImportError: one of them is absent.
    """
    import imagecodecs  # noqa: F401
    import tifffile

    return tifffile


def _open(page: Any) -> tuple[np.ndarray, Pixels]:
    """Return all samples [planes, depth, H, W, channels], and a view of them as pixels.

    Raises:
        _Unsupported: `_replace_segments` cannot write such a page.
    """
    mode = _MODES.get((int(page.photometric), page.samplesperpixel))
    alphas = tuple(int(kind) for kind in page.extrasamples)
    has_alpha = mode in ("LA", "RGBA")
    offsets, counts = (page.tags.get(tag) for tag in _segment_tags(page))
    is_plain = (
        page.dtype in (np.uint8, np.uint16)
        and page.bitspersample in (8, 16)
        and page.imagedepth == 1
        and page.fillorder == 1
        and int(page.compression) in _COMPRESSIONS
        and int(page.predictor) in _PREDICTORS
        and alphas == ((_STRAIGHT_ALPHA,) if has_alpha else ())
        and offsets is not None
        and counts is not None
        and offsets.count == counts.count
    )
    if mode is None or not is_plain:
        raise _Unsupported
    array = page.asarray(squeeze=False)
    planes, _, height, width, channels = array.shape
    samples = array[:, 0].transpose(1, 2, 0, 3).reshape(height, width, planes * channels)
    if not np.shares_memory(samples, array):
        raise _Unsupported
    profile = page.tags.get(34675)
    return array, Pixels(samples, mode, None if profile is None else bytes(profile.value))


def _segment_tags(page: Any) -> tuple[int, int]:
    return _TILE_TAGS if page.is_tiled else _STRIP_TAGS


def _replace_segments(file: BytesIO, page: Any, array: np.ndarray, extent: Edges) -> None:
    """Write the strips or tiles that overlap the extent."""
    from tifffile import TIFF

    left, top, right, bottom = extent
    offset_tag, count_tag = (page.tags[tag] for tag in _segment_tags(page))
    offsets, counts = list(page.dataoffsets), list(page.databytecounts)
    compress = None if page.compression == 1 else TIFF.COMPRESSORS[page.compression]
    predict = None if page.predictor == 1 else TIFF.PREDICTORS[page.predictor]
    for index in range(len(offsets)):
        _, (plane, _, y, x, _), (_, height, width, _) = page.decode(None, index)
        if y >= bottom or y + height <= top or x >= right or x + width <= left:
            continue
        samples = array[plane, 0, y : y + height, x : x + width]
        if page.is_tiled:
            missing = page.tilelength - samples.shape[0], page.tilewidth - samples.shape[1]
            samples = np.pad(samples, ((0, missing[0]), (0, missing[1]), (0, 0)))
        if predict is not None:
            samples = predict(np.ascontiguousarray(samples), axis=1)
        encoded = samples.astype(page.dtype.newbyteorder(page.parent.byteorder)).tobytes()
        if compress is not None:
            encoded = compress(encoded)
        offsets[index] = _place(file, encoded, offsets[index], counts[index])
        counts[index] = len(encoded)
    integer = "Q" if page.parent.is_bigtiff else "I"
    offset_tag.overwrite(offsets, dtype=integer)
    count_tag.overwrite(counts, dtype=integer)


def _place(file: BytesIO, encoded: bytes, offset: int, num_bytes: int) -> int:
    """Write a segment over its old bytes, or at the end, and return its offset.

    Nothing of the old bytes remains, because they show what the edit may have removed.
    """
    fits = len(encoded) <= num_bytes
    file.seek(offset)
    file.write((encoded if fits else b"").ljust(num_bytes, b"\0"))
    if fits:
        return offset
    end = file.seek(0, 2)
    if end % 2:  # offsets are even
        end += file.write(b"\0")
    file.write(encoded)
    return end


def _clean(tiff: Any, page: Any) -> list[str]:
    """Remove what shows the unedited picture, and return sentences about what is left of it."""
    notes = []
    if _LAYERS in page.tags:
        page.tags[_LAYERS].overwrite(b"")
        notes.append("the layers, which are not edited, are left out")
    if _PHOTOSHOP in page.tags:
        resources = bytes(page.tags[_PHOTOSHOP].value)
        page.tags[_PHOTOSHOP].overwrite(without_thumbnails(resources))
    if len(tiff.pages) > 1 or page.subifds:
        notes.append("the file has more than one picture: only the first one is edited")
    return notes
