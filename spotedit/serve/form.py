"""Read the multipart form of an edit, within the limits of the server."""

import asyncio
from dataclasses import dataclass

from fastapi import Request
from python_multipart.multipart import parse_options_header
from starlette.datastructures import FormData, UploadFile
from starlette.types import Message

from .errors import ApiError, bad_request
from .fields import EditForm, check_fields, shown
from .settings import ServeSettings

_FILES = ("image", "image[]", "mask")
_MAX_FILES = 17  # hosted APIs take 16 images and a mask; an error can then say how many came
_MAX_FIELDS = 64


@dataclass(frozen=True)
class Upload:
    """A request as it came: its fields, and the bytes of its files."""

    fields: EditForm
    image: bytes
    mask: bytes | None


async def read_form(request: Request, settings: ServeSettings) -> Upload:
    """Read the form of a request. Names of files are ignored, and none is written under a name.

    Raises:
        ApiError: the form is not right, too large, or takes too long.
    """
    content_type = request.headers.get("content-type", "")
    kind, options = parse_options_header(content_type)
    charset = options.get(b"charset", b"utf-8").lower()
    # Python decodes some other charsets in a time that grows with the square of the length.
    if kind != b"multipart/form-data" or charset not in (b"utf-8", b"utf8"):
        raise ApiError(
            415,
            f"the content type is {shown(content_type)}; expected multipart/form-data with the "
            "files and fields of an edit, in UTF-8",
            code="unsupported_content_type",
        )
    limited = _limited(request, settings.max_bytes)
    try:
        async with asyncio.timeout(settings.transfer_seconds):
            form = await limited.form(max_files=_MAX_FILES, max_fields=_MAX_FIELDS)
    except TimeoutError:
        raise ApiError(
            408,
            f"the upload took more than {settings.transfer_seconds:g} s; send a smaller picture",
            code="upload_timeout",
        ) from None
    try:
        image, mask = await _files(form)
        texts = [(name, value) for name, value in form.multi_items() if isinstance(value, str)]
        return Upload(check_fields(texts, settings), image, mask)
    finally:
        await form.close()


def _limited(request: Request, max_bytes: int) -> Request:
    """Return the request with a body that ends in an `ApiError` after `max_bytes`."""
    too_large = ApiError(
        413,
        f"the request has more than {max_bytes} bytes; send a smaller picture, or a JPEG",
        code="request_too_large",
    )
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length) > max_bytes:
        raise too_large
    received = 0

    async def receive() -> Message:
        nonlocal received
        message = await request.receive()
        received += len(message.get("body", b""))
        if received > max_bytes:
            raise too_large
        return message

    return Request(request.scope, receive)


async def _files(form: FormData) -> tuple[bytes, bytes | None]:
    """Return the bytes of the image and of the mask."""
    for name, value in form.multi_items():
        if name in _FILES and not isinstance(value, UploadFile):
            raise bad_request(
                f"{name} is text; expected a picture file (paths and addresses are not opened)",
                name,
                "invalid_file",
            )
        if name not in _FILES and isinstance(value, UploadFile):
            raise bad_request(
                f"the file {shown(name)} is unknown; expected image, and optionally mask",
                name,
                "unknown_parameter",
            )
    images = form.getlist("image") + form.getlist("image[]")
    masks = form.getlist("mask")
    if len(images) != 1:
        raise bad_request(
            f"{len(images)} images; expected one: this server takes no further reference images",
            "image",
            "wrong_number_of_images",
        )
    if len(masks) > 1:
        raise bad_request(f"{len(masks)} masks; expected one at most", "mask", "repeated_parameter")
    return await _bytes(images[0]), await _bytes(masks[0]) if masks else None


async def _bytes(file: UploadFile | str) -> bytes:
    assert isinstance(file, UploadFile)
    return await file.read()
