"""Decode the pictures of a request, and encode those of the answer."""

import inspect
import warnings
from dataclasses import dataclass
from io import BytesIO
from typing import Any

from PIL import Image, ImageOps
from torch import Tensor

from ..judge.mask import as_mask, same_aspect
from ..pictures.images import ImageError, decode_image
from .errors import bad_request
from .fields import EditForm, Size
from .form import Upload
from .settings import ServeSettings

FORMATS = ("PNG", "JPEG", "WEBP")  # some of Pillow's other formats start programs
_MIN_SIDE = 16  # pixels; with less, a pipeline has no token
_MAX_ASPECT = 16
_JPEG_QUALITY = 95


@dataclass(frozen=True)
class EditRequest:
    """A request whose files are decoded.

    Attributes:
        image: the picture, RGB, without metadata such as the place where it was taken.
        mask: bool [1, H, W], True where the picture may change, or None.
    """

    fields: EditForm
    image: Image.Image
    mask: Tensor | None


def decode(upload: Upload, settings: ServeSettings) -> EditRequest:
    """Decode the files of a request.

    Raises:
        ApiError: a file is no picture, is damaged or too large, or the two do not fit.
    """
    try:
        with _open(upload.image, "image", settings.max_pixels) as opened:
            _check_shape(opened)
        image = decode_image(upload.image, "image")
    except ImageError as error:
        raise bad_request(str(error), "image", "invalid_image") from None
    image.info.clear()
    mask = None
    if upload.mask is not None:
        try:
            mask = _decode_mask(upload.mask, image, upload.fields.mask_alpha, settings)
        except ValueError as error:
            raise bad_request(str(error), "mask", "invalid_mask") from None
    return EditRequest(upload.fields, image, mask)


def _open(data: bytes, name: str, max_pixels: int) -> Image.Image:
    """Read the header of a picture file, and no pixel.

    Raises:
        ImageError: the file has none of `FORMATS`, or too many pixels.
    """
    expected = f"expected at most {max_pixels} pixels: scale it down first"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            picture = Image.open(BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError:
        raise ImageError(f"{name} has too many pixels; {expected}") from None
    except Exception:  # every decoder has its own exceptions
        raise ImageError(
            f"{name} is no picture that can be read ({len(data)} bytes); expected PNG, JPEG or WebP"
        ) from None
    if picture.width * picture.height > max_pixels:
        raise ImageError(f"{name} is {picture.width} x {picture.height} pixels; {expected}")
    return picture


def _check_shape(image: Image.Image) -> None:
    """Raise `ImageError` for a picture that no pipeline could put on its grid of tokens."""
    short, long = sorted(image.size)
    if short < _MIN_SIDE or long > _MAX_ASPECT * short:
        raise ImageError(
            f"image is {image.width} x {image.height} pixels; expected sides of at least "
            f"{_MIN_SIDE} that differ by a factor of {_MAX_ASPECT} at most"
        )


def _decode_mask(
    data: bytes, image: Image.Image, mask_alpha: str, settings: ServeSettings
) -> Tensor:
    """Return the mask of `image`.

    Raises:
        ValueError: the file cannot be read, or its picture is no mask of `image`.
    """
    with _open(data, "mask", settings.max_pixels) as opened:
        try:
            picture = ImageOps.exif_transpose(opened)
            picture.load()
        except Exception as error:
            raise ImageError(f"mask is damaged or cut short ({error}); export it again") from None
        if not same_aspect((picture.height, picture.width), (image.height, image.width)):
            raise ImageError(
                f"mask is {picture.width} x {picture.height} pixels; expected the aspect ratio of "
                f"the image, {image.width} x {image.height}"
            )
        return read_mask(picture, mask_alpha)


def read_mask(picture: Image.Image, mask_alpha: str) -> Tensor:
    """Return bool [1, H, W], True where the picture may change.

    If the mask has a transparent pixel and `mask_alpha` is "transparent", as in hosted APIs, its
    transparent pixels may change. `as_mask` reads every other mask.

    Raises:
        ValueError: see `as_mask`.
    """
    if mask_alpha == "transparent" and picture.has_transparency_data:
        alpha = picture.convert("RGBA").getchannel("A")
        if alpha.getextrema() != (255, 255):
            return as_mask(alpha.point(lambda value: 255 * (value < 128)))
    return as_mask(picture)


def encode(picture: Image.Image, fields: EditForm) -> bytes:
    """Return the bytes of the picture file that a client asked for."""
    quality = fields.output_compression
    options: dict[str, Any] = {}
    if fields.output_format == "jpeg":
        options = {"quality": _JPEG_QUALITY if quality is None else quality}
    elif fields.output_format == "webp":
        options = {"lossless": True} if quality is None else {"quality": quality}
    file = BytesIO()
    picture.save(file, fields.output_format, **options)
    return file.getvalue()


def size_arguments(pipe: Any, size: Size | None) -> dict[str, int]:
    """Return the arguments of the pipeline's call for a picture of this size. None: no argument."""
    if size is None:
        return {}
    height, width = size
    arguments = {"height": height, "width": width, "max_area": height * width}
    parameters = inspect.signature(type(pipe).__call__).parameters
    return {name: value for name, value in arguments.items() if name in parameters}
