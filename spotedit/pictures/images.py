"""Load users' pictures in the form that a model needs, and save the results."""

import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from .colour import to_srgb
from .files import OutputError, atomic_write, describe_error, try_writing

__all__ = [
    "IMAGE_SUFFIXES",
    "MAX_PIXELS",
    "ImageError",
    "OutputError",
    "atomic_write",
    "check_output",
    "decode_image",
    "decode_mask",
    "load_image",
    "load_mask",
    "open_image",
    "save_image",
]

MAX_PIXELS = 128 * 1024**2
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp", ".avif", ".heic")
_SAVE_OPTIONS: dict[str, dict[str, Any]] = {
    ".jpg": {"quality": 95},
    ".jpeg": {"quality": 95},
    ".webp": {"lossless": True},
    ".avif": {"quality": 90, "subsampling": "4:4:4"},
    ".heic": {"quality": 90, "chroma": 444},
}
_NEEDS_HEIF = 'pip install "spotedit[photos]" to read and write these'
_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")


class ImageError(ValueError):
    """Raised when a picture cannot be read."""


def load_image(path: str | os.PathLike[str]) -> Image.Image:
    """Load a picture as RGB with 8 bits a channel, rotated according to its EXIF orientation.

    Transparent parts become white. 16-bit greys are scaled to 8 bits. CMYK and colours with an ICC
    profile are converted to sRGB. An animation gives its first frame.

    Raises:
        ImageError: the file does not exist, is no picture or is damaged; it has more than
            `MAX_PIXELS` pixels, which is checked before anything is decoded, or more than there is
            memory for; or its pixels are floats, or integers outside 0..65535.
    """
    return _load(Path(path), _to_rgb)


def decode_image(
    data: bytes, name: str, formats: tuple[str, ...] | None = None, max_pixels: int = MAX_PIXELS
) -> Image.Image:
    """Decode the bytes of a picture file as `load_image` does.

    Args:
        name: what error messages call the picture.
        formats: Pillow's names of the formats that the file may have. None allows all.
        max_pixels: largest number of pixels, up to `MAX_PIXELS`.
    """
    return _decode(BytesIO(data), name, len(data), _to_rgb, formats, max_pixels)


def decode_mask(
    data: bytes, name: str, formats: tuple[str, ...] | None = None, max_pixels: int = MAX_PIXELS
) -> Image.Image:
    """Decode the bytes of a mask as `load_mask` does. The arguments are those of `decode_image`."""
    return _decode(BytesIO(data), name, len(data), lambda image: image, formats, max_pixels)


def load_mask(path: str | os.PathLike[str]) -> Image.Image:
    """Load a mask with its pixels and mode unchanged; `judge.mask.as_mask` interprets them.

    The mask is rotated according to its EXIF orientation. An animation gives its first frame.

    Raises:
        ImageError: the file does not exist, is no picture or is damaged, or it has more than
            `MAX_PIXELS` pixels, or more than there is memory for.
    """
    return _load(Path(path), lambda image: image)


def _load(path: Path, convert: Callable[[Image.Image], Image.Image]) -> Image.Image:
    return _decode(path, str(path), _num_bytes(path), convert)


def _num_bytes(path: Path) -> int:
    """Return the size of a file."""
    if not path.is_file():
        problem = "a folder" if path.is_dir() else "no such file"
        raise ImageError(f"{path}: {problem}; expected a picture file")
    return path.stat().st_size


def _decode(
    file: Path | BytesIO,
    name: str,
    num_bytes: int,
    convert: Callable[[Image.Image], Image.Image],
    formats: tuple[str, ...] | None = None,
    max_pixels: int = MAX_PIXELS,
) -> Image.Image:
    """Open, decode and convert a picture. `name` and `num_bytes` are for error messages."""
    with _opened(file, name, num_bytes, formats, max_pixels) as opened:
        return convert(ImageOps.exif_transpose(opened))


def open_image(path: str | os.PathLike[str]) -> AbstractContextManager[Image.Image]:
    """Open a picture for a block of `with`. An exception there means damage, or too little memory.

    Raises:
        ImageError: the file does not exist, is no picture or is damaged, or it has more than
            `MAX_PIXELS` pixels, or more than there is memory for.
    """
    path = Path(path)
    return _opened(path, str(path), _num_bytes(path))


@contextmanager
def _opened(
    file: Path | BytesIO,
    name: str,
    num_bytes: int,
    formats: tuple[str, ...] | None = None,
    max_pixels: int = MAX_PIXELS,
) -> Iterator[Image.Image]:
    """Open a picture; see `open_image`. `name` and `num_bytes` are for error messages."""
    max_pixels = min(max_pixels, MAX_PIXELS)
    try:
        if formats is None and _is_heif(file):
            register_heif()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            opened = Image.open(file, formats=formats)
    except Image.DecompressionBombError:
        raise _too_large(name, "too many pixels", max_pixels) from None
    except ImportError:
        raise ImageError(f"{name}: a HEIC picture; {_NEEDS_HEIF}") from None
    except Exception as error:  # every decoder has its own exceptions
        raise ImageError(
            f"{name}: not a picture that Pillow can read ({num_bytes} bytes); convert it to PNG or "
            "JPEG"
        ) from error
    with opened:
        if opened.width * opened.height > max_pixels:
            raise _too_large(name, f"{opened.width} x {opened.height} pixels", max_pixels)
        try:
            yield opened
        except ImageError as error:
            raise ImageError(f"{name}: {error}") from None
        except MemoryError as error:
            raise ImageError(
                f"{name}: there is too little memory for {opened.width} x {opened.height} pixels; "
                "scale it down first"
            ) from error
        except Exception as error:
            raise ImageError(
                f"{name}: the {opened.format} data is damaged or cut short ({error}); "
                "export the picture again"
            ) from error


def _is_heif(file: Path | BytesIO) -> bool:
    """Tell whether a file is HEIC, which Pillow does not read by itself."""
    if isinstance(file, BytesIO):
        head = file.getvalue()[:12]
    else:
        with file.open("rb") as opened:
            head = opened.read(12)
    return head[4:8] == b"ftyp" and head[8:12] in _HEIF_BRANDS


def register_heif() -> None:
    """Let Pillow read and write HEIC.

    Raises:
        ImportError: pillow-heif is not installed.
    """
    import pillow_heif

    pillow_heif.register_heif_opener()


def _too_large(name: str, size: str, max_pixels: int) -> ImageError:
    return ImageError(f"{name}: {size}; expected at most {max_pixels}: scale it down first")


def _to_rgb(image: Image.Image) -> Image.Image:
    """Convert any picture to sRGB with 8 bits a channel, on white if it is transparent."""
    flat = _flatten(_to_8_bit(image))
    return to_srgb(flat, image.info.get("icc_profile"))


def _to_8_bit(image: Image.Image) -> Image.Image:
    """Scale 16-bit grey from 0..65535 to 0..255. Pictures with 8 bits a channel stay unchanged."""
    if image.mode not in ("I", "F") and not image.mode.startswith("I;16"):
        return image
    # divide by 257 and round: 65535 becomes 255
    grey = grey_16_bit(image).astype(np.int64)
    return Image.fromarray(((grey + 128) // 257).astype(np.uint8))


def grey_16_bit(image: Image.Image) -> np.ndarray:
    """Return a grey picture with more than 8 bits a pixel as uint16 [H, W].

    Raises:
        ImageError: the pixels are floats, or integers outside 0..65535.
    """
    if image.mode == "F":
        raise ImageError("32-bit float pixels; expected 8 or 16 bits a channel: convert it")
    grey = np.asarray(image)
    low, high = int(grey.min()), int(grey.max())
    if low < 0 or high > 65535:
        raise ImageError(f"grey values from {low} to {high}; expected 0..65535: convert it")
    return grey.astype(np.uint16)


def _flatten(image: Image.Image) -> Image.Image:
    """Put a transparent picture on white."""
    if not image.has_transparency_data:
        return image
    layer = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")


def check_output(
    path: str | os.PathLike[str],
    force: bool = False,
    suffixes: Sequence[str] = IMAGE_SUFFIXES,
) -> Path:
    """Check that a file can be written at `path`, and return the path.

    Call it before a long computation whose result is to be written there.

    Args:
        force: allow `path` to be an existing file, which will be overwritten.
        suffixes: the suffixes that the file may have.

    Raises:
        OutputError: the suffix is another one, the folder does not exist or cannot be written to,
            `path` is a folder, or it is an existing file and `force` is False.
    """
    path = Path(path)
    if path.suffix.lower() not in suffixes:
        raise OutputError(
            f"{path}: the suffix is {path.suffix!r}; expected one of {', '.join(suffixes)}"
        )
    if path.suffix.lower() == ".heic":
        try:
            register_heif()
        except ImportError:
            raise OutputError(f"{path}: a HEIC picture; {_NEEDS_HEIF}") from None
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
            f"{path}: cannot write to the folder {path.parent} ({describe_error(error)}); "
            "choose another"
        ) from error
    return path


def save_image(image: Image.Image, path: str | os.PathLike[str], force: bool = False) -> None:
    """Write a picture atomically, in the format of its suffix (one of `IMAGE_SUFFIXES`).

    Raises:
        OutputError: see `check_output` and `atomic_write`.
    """
    path = check_output(path, force)
    suffix = path.suffix.lower()
    image_format = Image.registered_extensions()[suffix]
    encoded = BytesIO()
    with atomic_write(path) as temporary:
        # Given a path, Pillow does not notice that a full disk truncated the file. So the picture
        # is encoded in memory first.
        image.save(encoded, image_format, **_SAVE_OPTIONS.get(suffix, {}))
        temporary.write_bytes(encoded.getbuffer())
