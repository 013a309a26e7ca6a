"""Decode the pictures of a request, and encode those of the answer."""

import inspect
import re
from dataclasses import dataclass
from io import BytesIO
from typing import Any

from PIL import Image
from torch import Tensor

from ..editor.errors import BadInput
from ..judge.mask import as_mask, same_aspect
from ..pictures.images import ImageError, decode_image, decode_mask
from .errors import bad_request
from .fields import EditForm, Size
from .form import Upload
from .settings import ServeSettings

_FORMATS = ("PNG", "JPEG", "WEBP")  # some of Pillow's other formats start programs
_MIN_SIDE = 16  # pixels; with less, a pipeline has no token
_MAX_ASPECT = 16
_JPEG_QUALITY = 95
_JPEG_SCAN = re.compile(rb"\xff\xda\x00[\x08\x0a\x0c\x0e][\x01-\x04]")  # the head of a scan
_MAX_JPEG_SCANS = 100  # programs write about 10; the decoder passes over the whole picture for each


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
        _check_scans(upload.image)
        image = decode_image(upload.image, "image", _FORMATS, settings.max_pixels)
        _check_shape(image)
    except ImageError as error:
        raise bad_request(str(error), "image", "invalid_image") from None
    image.info.clear()
    mask = None
    if upload.mask is not None:
        try:
            _check_scans(upload.mask)
            mask = _decode_mask(upload.mask, image, upload.fields.mask_alpha, settings.max_pixels)
        except ValueError as error:
            raise bad_request(str(error), "mask", "invalid_mask") from None
    return EditRequest(upload.fields, image, mask)


def _check_scans(data: bytes) -> None:
    """Raise `ImageError` for a JPEG that would be decoded for hours, although it has few pixels."""
    num_scans = len(_JPEG_SCAN.findall(data)) if data.startswith(b"\xff\xd8") else 0
    if num_scans > _MAX_JPEG_SCANS:
        raise ImageError(
            f"a JPEG of {num_scans} scans; expected at most {_MAX_JPEG_SCANS}: save it again"
        )


def _check_shape(image: Image.Image) -> None:
    """Raise `ImageError` for a picture that no pipeline could put on its grid of tokens."""
    short, long = sorted(image.size)
    if short < _MIN_SIDE or long > _MAX_ASPECT * short:
        raise ImageError(
            f"image is {image.width} x {image.height} pixels; expected sides of at least "
            f"{_MIN_SIDE} that differ by a factor of {_MAX_ASPECT} at most"
        )


def _decode_mask(data: bytes, image: Image.Image, mask_alpha: str, max_pixels: int) -> Tensor:
    """Return the mask of `image`.

    Raises:
        ValueError: the file cannot be read, or its picture is no mask of `image`.
    """
    mask = decode_mask(data, "mask", _FORMATS, max_pixels)
    if not same_aspect((mask.height, mask.width), (image.height, image.width)):
        raise ImageError(
            f"mask is {mask.width} x {mask.height} pixels; expected the aspect ratio of the image, "
            f"{image.width} x {image.height}"
        )
    return read_mask(mask, mask_alpha)


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
    """Return the arguments of the pipeline's call for a picture of this size. None: no argument.

    Raises:
        BadInput: the pipeline chooses the size itself.
    """
    if size is None:
        return {}
    height, width = size
    parameters = inspect.signature(type(pipe).__call__).parameters
    if not {"height", "width"} <= parameters.keys():
        raise BadInput(
            f"size is {width}x{height}, but this model chooses the size itself; send size=auto"
        )
    arguments = {"height": height, "width": width}
    if "max_area" in parameters:
        arguments["max_area"] = height * width
    return arguments
