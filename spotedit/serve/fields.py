"""The fields of an edit's form, and the checks of their values."""

import secrets
from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from spotedit_kernels.select_tokens import Mode

from .errors import ApiError, bad_request
from .settings import ServeSettings

OutputFormat = Literal["png", "jpeg", "webp"]
Size = tuple[int, int]  # (height, width)

_SIDE_MULTIPLE = 16  # hosted APIs ask for this too; it fits the token grid of every pipeline
_MAX_ASPECT = 3
_MAX_RANDOM_SEED = 2**31
_MAX_SEED = 2**53 - 1  # JSON keeps integers up to this in every language
_SHOWN_CHARACTERS = 80


def _size(text: object) -> object:
    """Return the (height, width) of a text like "1024x768", or None for "auto"."""
    if text == "auto":
        return None
    width, separator, height = str(text).partition("x")
    if not separator or not width.isdecimal() or not height.isdecimal():
        raise ValueError("expected auto, or width x height such as 1024x768")
    return int(height), int(width)


class EditForm(BaseModel):
    """The fields of `POST /v1/images/edits` besides the files."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    prompt: str = Field(description="What to change.")
    model: str | None = Field(None, description="Name of the served model.")
    n: int = Field(1, ge=1, description="Number of pictures.")
    size: Annotated[Size | None, BeforeValidator(_size)] = Field(
        None, description="Size of the model's picture: auto, or width x height.", examples=["auto"]
    )
    response_format: Literal["b64_json"] = "b64_json"
    output_format: OutputFormat = "png"
    output_compression: int | None = Field(
        None, ge=0, le=100, description="Quality of JPEG (95 without it) and WebP (lossless)."
    )
    stream: bool = Field(False, description="Answer by server-sent events.")
    partial_images: int = Field(0, ge=0, le=3, description="Number of drafts in a stream.")
    quality: Literal["auto"] = "auto"
    background: Literal["auto", "opaque"] = "auto"
    input_fidelity: Literal["high"] = "high"
    user: str | None = Field(None, description="Not used, nor kept.")
    safety_identifier: str | None = Field(None, description="Not used, nor kept.")
    # The following are extensions of the hosted form.
    seed: int = Field(
        default_factory=lambda: secrets.randbelow(_MAX_RANDOM_SEED),
        ge=0,
        le=_MAX_SEED,
        description="Seed of the first picture; the next ones add 1. Random without it.",
    )
    keep: Literal["original", "model"] | None = Field(
        None,
        description="original: the edit in the uploaded picture, at its size; model: the picture "
        "as the model made it. The default is original, and model if size is given.",
    )
    mask_mode: Mode = Field(
        "intersect", description="How the mask and the tokens judged to change are combined."
    )
    mask_alpha: Literal["transparent", "opaque"] = Field(
        "transparent", description="Which pixels of a mask with transparency may change."
    )


def check_fields(texts: Sequence[tuple[str, str]], settings: ServeSettings) -> EditForm:
    """Return the fields that a client sent as (name, value).

    An empty field counts as absent, except for the prompt.

    Raises:
        ApiError: a field is missing, unknown, given twice or out of range.
    """
    names = [name for name, _ in texts]
    for name in names:
        if names.count(name) > 1:
            message = f"{shown(name)} is given {names.count(name)} times; send it once"
            raise bad_request(message, name, "repeated_parameter")
    given = {name: value for name, value in texts if value or name == "prompt"}
    if given.get("response_format") == "url":
        raise bad_request(
            "response_format is 'url'; expected b64_json: the server keeps no pictures",
            "response_format",
            "unsupported_value",
        )
    try:
        fields = EditForm.model_validate(given)
    except ValidationError as error:
        raise _explained(error) from None
    _check_limits(fields, settings)
    return fields


def _explained(error: ValidationError) -> ApiError:
    """Return the error for the first field that pydantic found wrong."""
    problem = error.errors()[0]
    name = str(problem["loc"][0])
    if problem["type"] == "missing":
        return bad_request(f"{name} is missing; the form needs it", name, "missing_parameter")
    if problem["type"] == "extra_forbidden":
        known = ", ".join(EditForm.model_fields)
        message = f"{shown(name)} is unknown; expected one of image, mask, {known}"
        return bad_request(message, name, "unknown_parameter")
    expected = str(problem["msg"]).removeprefix("Value error, ")
    expected = expected[0].lower() + expected[1:]
    return bad_request(f"{name} is {shown(problem['input'])}; {expected}", name, "invalid_value")


def _check_limits(fields: EditForm, settings: ServeSettings) -> None:
    """Check what depends on the server or on several fields."""
    if not fields.prompt.strip():
        raise bad_request("prompt is empty; say what to change", "prompt", "empty_prompt")
    if len(fields.prompt) > settings.max_prompt:
        raise bad_request(
            f"prompt has {len(fields.prompt)} characters; expected at most {settings.max_prompt}",
            "prompt",
            "prompt_too_long",
        )
    if fields.n > settings.max_pictures:
        raise bad_request(
            f"n is {fields.n}; expected 1 to {settings.max_pictures}", "n", "invalid_value"
        )
    if fields.partial_images and not fields.stream:
        message = f"partial_images is {fields.partial_images} without stream=true; send both"
        raise bad_request(message, "partial_images", "invalid_value")
    if fields.model not in (None, settings.model):
        raise ApiError(
            404,
            f"model is {shown(fields.model)}; this server has {settings.model}: send that name, "
            "or none",
            "model",
            "model_not_found",
        )
    if fields.size is not None:
        _check_size(fields.size, settings)
        if fields.keep == "original":
            raise bad_request(
                "keep=original gives the size of your picture; leave size out, or send keep=model",
                "size",
                "invalid_value",
            )


def _check_size(size: Size, settings: ServeSettings) -> None:
    height, width = size
    problem = None
    if height % _SIDE_MULTIPLE or width % _SIDE_MULTIPLE or not height or not width:
        problem = f"expected multiples of {_SIDE_MULTIPLE}"
    elif max(size) > _MAX_ASPECT * min(size):
        problem = f"expected sides that differ by a factor of {_MAX_ASPECT} at most"
    elif height * width > settings.max_output_pixels:
        problem = f"expected at most {settings.max_output_pixels} pixels"
    if problem is not None:
        raise bad_request(f"size is {width}x{height}; {problem}", "size", "invalid_value")


def shown(value: object) -> str:
    """Return a value as a message shows it: as Python writes it, and shortened."""
    text = repr(value)
    if len(text) <= _SHOWN_CHARACTERS:
        return text
    return text[:_SHOWN_CHARACTERS] + "..."
