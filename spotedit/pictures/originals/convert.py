"""Write an edit into a file of another format than the original's."""

from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from ..colour import to_srgb
from ..composite import Placed, paste
from ..pixels import Pixels, pixels_of
from . import jpeg, others, png, tiff
from .metadata import Metadata, metadata_of
from .orientation import as_shown, as_stored, orientation
from .rewritten import Rewritten

_DEEP = ("PNG", "TIFF")
_WITH_ALPHA = ("PNG", "TIFF", "WEBP", "AVIF", "HEIF")
_CMYK = ("JPEG", "TIFF")
_GREY_ALPHA = ("PNG", "TIFF")
_LOSSY = ("JPEG", "AVIF", "HEIF")
_JPEG_LARGEST = 65_500  # bytes of EXIF data or of XMP


def converted(path: Path, edit: Placed, out_format: str) -> Rewritten:
    """Return a file of another format with the edit in it. Its pixels are upright."""
    with Image.open(path) as image:
        turn = orientation(image)
        metadata = metadata_of(image).upright()
        if image.format == "PNG":
            pixels, notes = png.read(path.read_bytes())
        elif image.format == "TIFF":
            pixels, notes = tiff.read(path, image)
            if out_format == "TIFF":
                notes.append(
                    "this TIFF file had to be written anew: compression, order of the samples and "
                    "private tags are not kept"
                )
        else:
            pixels, notes = pixels_of(image), []
        if getattr(image, "n_frames", 1) > 1 and image.format != "MPO":
            notes.append("the file has several pictures: only the first one is kept")
    notes += paste(pixels, as_stored(edit, turn))
    pixels.values = as_shown(pixels.values, turn)
    pixels, more_notes = fitted(pixels, out_format)
    if pixels.profile is None:
        metadata = metadata.without_profile()
    if out_format in _LOSSY:
        name = "HEIC" if out_format == "HEIF" else out_format
        more_notes.append(f"{name} is lossy: write to a .png or .tif file to keep all pixels")
    if out_format == "BMP" and (metadata.exif or metadata.profile or metadata.xmp):
        more_notes.append("BMP holds no EXIF data, colour profile or XMP")
    if out_format == "JPEG":
        metadata, left_out = _fitting_jpeg(metadata)
        more_notes += left_out
    data, encoding_notes = _encode(pixels, metadata, out_format)
    return Rewritten(data, notes + more_notes + encoding_notes)


def fitted(pixels: Pixels, out_format: str) -> tuple[Pixels, list[str]]:
    """Return pixels that a format can hold, and sentences about what they lost."""
    notes = []
    name = "HEIC" if out_format == "HEIF" else out_format
    if pixels.mode == "CMYK" and out_format not in _CMYK:
        pixels = _cmyk_to_srgb(pixels.to_8_bit())
        notes.append(f"{name} holds no CMYK: the colours are sRGB now")
    if pixels.is_deep and out_format not in _DEEP:
        pixels = pixels.to_8_bit()
        notes.append(f"{name} holds 8 of the 16 bits a channel")
    if pixels.has_alpha and out_format not in _WITH_ALPHA:
        pixels = _on_white(pixels)
        notes.append(f"{name} holds no transparency: it is on white now")
    if pixels.mode == "LA" and out_format not in _GREY_ALPHA:
        values = pixels.values[..., [0, 0, 0, 1]]
        pixels = Pixels(values, "RGBA")
    return pixels, notes


def _fitting_jpeg(metadata: Metadata) -> tuple[Metadata, list[str]]:
    """Return the metadata that fits in segments of a JPEG file, and what is left out."""
    too_large = [
        name for name in ("exif", "xmp") if len(getattr(metadata, name) or b"") > _JPEG_LARGEST
    ]
    notes = [f"the {name.upper()} data is too large for JPEG and left out" for name in too_large]
    return replace(metadata, **dict.fromkeys(too_large)), notes


def _cmyk_to_srgb(pixels: Pixels) -> Pixels:
    return Pixels(np.array(to_srgb(pixels.to_image(), pixels.profile)), "RGB")


def _on_white(pixels: Pixels) -> Pixels:
    values = pixels.values.astype(np.float32)
    colours, alpha = values[..., :-1], values[..., -1:] / pixels.white
    mixed = np.rint(colours * alpha + pixels.white * (1 - alpha))
    return Pixels(mixed.astype(pixels.values.dtype), pixels.colours, pixels.profile)


def _encode(pixels: Pixels, metadata: Metadata, out_format: str) -> tuple[bytes, list[str]]:
    if out_format == "TIFF":
        return tiff.encode(pixels, metadata)
    if out_format == "PNG":
        return png.encode(pixels, metadata), []
    if out_format == "JPEG":
        return jpeg.encode(pixels, metadata), []
    is_lossless = out_format in ("WEBP", "BMP")
    return others.encode(pixels, metadata, out_format, is_lossless), []
