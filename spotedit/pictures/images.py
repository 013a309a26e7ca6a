"""Users' pictures in and out: what a model needs, or an error that says what is wrong."""

import os
import warnings
from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageCms, ImageOps

from .files import OutputError, atomic_write, reason, try_writing

__all__ = [
    "IMAGE_SUFFIXES",
    "MAX_PIXELS",
    "ImageError",
    "OutputError",
    "atomic_write",
    "check_output",
    "decode_image",
    "load_image",
    "load_mask",
    "save_image",
]

MAX_PIXELS = 128 * 1024**2
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp")
_SAVE_OPTIONS: dict[str, dict[str, Any]] = {
    ".jpg": {"quality": 95},
    ".jpeg": {"quality": 95},
    ".webp": {"lossless": True},
}


class ImageError(ValueError):
    """A picture cannot be read."""


def load_image(path: str | os.PathLike[str]) -> Image.Image:
    """A picture as RGB, 8 bits a channel, turned as its EXIF orientation says.

    Transparent parts become white. Sixteen-bit greys are scaled to 8 bits; CMYK and colours with
    an ICC profile are converted to sRGB. Of an animation, the first frame is taken.

    Raises:
        ImageError: no such file, not a picture, damaged, more than `MAX_PIXELS` pixels (found
            before anything is decoded), or a pixel format without a defined range.
    """
    return _load(Path(path), _to_rgb)


def decode_image(data: bytes, name: str) -> Image.Image:
    """As `load_image`, from the bytes of a picture file that errors are to call `name`."""
    return _decode(BytesIO(data), name, len(data), _to_rgb)


def load_mask(path: str | os.PathLike[str]) -> Image.Image:
    """A mask, for `spotedit.judge.mask.as_mask` to interpret: its pixels and mode stay as they are.

    It is turned as its EXIF orientation says. Of an animation, the first frame is taken.

    Raises:
        ImageError: no such file, not a picture, damaged, or more than `MAX_PIXELS` pixels.
    """
    return _load(Path(path), lambda image: image)


def _load(path: Path, convert: Callable[[Image.Image], Image.Image]) -> Image.Image:
    if not path.is_file():
        kind = "a folder" if path.is_dir() else "no such file"
        raise ImageError(f"{path}: {kind}; expected a picture file")
    return _decode(path, path, path.stat().st_size, convert)


def _decode(
    source: Path | BytesIO,
    name: Path | str,
    size: int,
    convert: Callable[[Image.Image], Image.Image],
) -> Image.Image:
    """`source`, of `size` bytes, decoded; errors call it `name`."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            opened = Image.open(source)
    except Image.DecompressionBombError:
        raise _too_large(name, "too many pixels") from None
    except Exception as error:  # decoders raise what they like
        raise ImageError(
            f"{name}: not a picture that Pillow can read ({size} bytes); convert it to PNG or JPEG"
        ) from error
    with opened:
        if opened.width * opened.height > MAX_PIXELS:
            raise _too_large(name, f"{opened.width} x {opened.height} pixels")
        try:
            return convert(ImageOps.exif_transpose(opened))
        except ImageError as error:
            raise ImageError(f"{name}: {error}") from None
        except Exception as error:
            raise ImageError(
                f"{name}: the {opened.format} data is damaged or cut short ({error}); "
                "export the picture again"
            ) from error


def _too_large(name: Path | str, size: str) -> ImageError:
    return ImageError(f"{name}: {size}; expected at most {MAX_PIXELS}: scale it down first")


def _to_rgb(image: Image.Image) -> Image.Image:
    flat = _flatten(_to_8_bit(image))
    profile = image.info.get("icc_profile")
    if profile and flat.mode in ("RGB", "CMYK"):
        try:
            source = ImageCms.ImageCmsProfile(BytesIO(profile))
            if "sRGB" not in ImageCms.getProfileDescription(source):
                target = ImageCms.createProfile("sRGB")
                flat = ImageCms.profileToProfile(flat, source, target, outputMode="RGB") or flat
        except (ImageCms.PyCMSError, OSError):
            pass  # an unreadable profile: the numbers are taken as they are
    return flat.convert("RGB")


def _to_8_bit(image: Image.Image) -> Image.Image:
    """`image`, with a 16-bit grey scaled from 0..65535 to 0..255."""
    if image.mode != "I" and not image.mode.startswith("I;16"):
        if image.mode == "F":
            raise ImageError("32-bit float pixels; expected 8 or 16 bits a channel: convert it")
        return image
    grey = np.asarray(image).astype(np.int64)
    low, high = int(grey.min()), int(grey.max())
    if low < 0 or high > 65535:
        raise ImageError(f"grey values from {low} to {high}; expected 0..65535: convert it")
    return Image.fromarray(((grey + 128) // 257).astype(np.uint8))


def _flatten(image: Image.Image) -> Image.Image:
    if not image.has_transparency_data:
        return image
    layer = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")


def check_output(
    path: str | os.PathLike[str],
    force: bool = False,
    suffixes: Sequence[str] = IMAGE_SUFFIXES,
) -> Path:
    """`path`, if a file with one of `suffixes` can be written there. To be called before the work.

    Raises:
        OutputError: another suffix, no such folder, a folder that cannot be written to, a folder
            in the file's place, or an existing file without `force`.
    """
    path = Path(path)
    if path.suffix.lower() not in suffixes:
        raise OutputError(
            f"{path}: the suffix is {path.suffix!r}; expected one of {', '.join(suffixes)}"
        )
    try:
        if not path.parent.is_dir():
            raise OutputError(f"{path}: there is no folder {path.parent}; create it first")
        if path.is_dir():
            raise OutputError(f"{path}: is a folder; expected the name of a file")
        if path.exists() and not force:
            raise OutputError(
                f"{path}: already exists; choose another name or force overwriting it"
            )
        try_writing(path)
    except OSError as error:
        raise OutputError(
            f"{path}: cannot write to the folder {path.parent} ({reason(error)}); choose another"
        ) from error
    return path


def save_image(image: Image.Image, path: str | os.PathLike[str], force: bool = False) -> None:
    """Write a picture in the format of its suffix (one of `IMAGE_SUFFIXES`), whole or not at all.

    Raises:
        OutputError: see `check_output` and `atomic_write`.
    """
    path = check_output(path, force)
    suffix, encoded = path.suffix.lower(), BytesIO()
    with atomic_write(path) as temporary:
        # Pillow, given a path, takes a write that the disk cut short for a whole one
        image.save(encoded, Image.registered_extensions()[suffix], **_SAVE_OPTIONS.get(suffix, {}))
        temporary.write_bytes(encoded.getbuffer())
