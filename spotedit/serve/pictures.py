"""Decode the pictures of a request, and encode those of the answer."""

import inspect
from io import BytesIO
from typing import Any

from PIL import Image
from torch import Tensor

from ..judge.mask import as_mask, same_aspect
from ..pictures.images import ImageError, Limits, decode_image, decode_mask
from .errors import bad_request
from .fields import EditForm, Size
from .form import Upload
from .settings import ServeSettings

FORMATS = ("PNG", "JPEG", "MPO", "WEBP")  # an MPO file is a JPEG with further pictures behind it
_JPEG_QUALITY = 95


def decode(upload: Upload, settings: ServeSettings) -> tuple[Image.Image, Tensor | None]:
    """Return the picture in RGB, and the mask: bool [1, H, W], True where it may change.

    Raises:
        ApiError: a file is no picture, is damaged or too large, or the two do not fit.
    """
    limits = Limits(settings.max_pixels, FORMATS)
    try:
        image = decode_image(upload.image, "image", limits)
    except ImageError as error:
        raise bad_request(str(error), "image", "invalid_image") from None
    if upload.mask is None:
        return image, None
    try:
        picture = decode_mask(upload.mask, "mask", limits)
        if not same_aspect((picture.height, picture.width), (image.height, image.width)):
            raise ValueError(
                f"mask is {picture.width} x {picture.height} pixels; expected the aspect ratio of "
                f"the image, {image.width} x {image.height}"
            )
        return image, read_mask(picture, upload.fields.mask_alpha)
    except ValueError as error:
        raise bad_request(str(error), "mask", "invalid_mask") from None


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
