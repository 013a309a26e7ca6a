"""The user's mask says where the picture may change."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import PIL.Image
import torch
import torch.nn.functional as F
from spotedit_kernels.select_tokens import Mode
from torch import Tensor

from ..models.spec import WHOLE, Arguments, Spec
from ..options.choices import Box, Grid, Size

MODES: tuple[Mode, ...] = ("intersect", "union", "replace")
KEEPS_ALL = "the mask keeps every token, so the picture is the source"
_WHITES = (1, 255, 65535)
_MAX_CHANNELS = 4
_LUMINANCE = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # Pillow's weights of R, G, B
_SHAPES = "[H, W], [B, H, W], [B, 1, H, W], [H, W, C] or [B, H, W, C] with up to 4 channels C"
# The following are fractions of white.
_GREY_TOLERANCE = 1 / 16  # lossy formats make R, G and B of a grey pixel differ by up to this
_OPAQUE_TOLERANCE = 1 / 512
_MAX_BLACK = 1 / 3  # a drawing in black and white has pixels that are darker than this
_MIN_WHITE = 2 / 3  # and pixels that are lighter than this
_MAX_OVERSHOOT = 1.0  # resampled floats may exceed white by this
_MAX_UNDERSHOOT = 0.5  # resampled floats may fall below 0 by this, see `_lowest_value`


@dataclass(frozen=True)
class UserMask:
    """A mask in pixels, and how it is combined with the judgement.

    Attributes:
        pixels: bool [1 or B, H, W], True where a pixel may change.
        mode: see `spotedit_kernels.select_tokens`.
    """

    pixels: Tensor
    mode: Mode


def as_mask(mask: object) -> Tensor:
    """Read a mask as bool [B, H, W] on the CPU, True where a pixel may change.

    A mask may be a PIL image of any mode, or an array or tensor of any integer or float type and
    of shape [H, W], [B, H, W], [B, 1, H, W], [H, W, C] or [B, H, W, C]. A last dimension of up to 4
    is C: grey, grey and alpha, RGB, or RGBA.

    Without alpha, a pixel may change if it is light, that is brighter than half of white. The mode
    of a PIL image says what white is: 255 with 8 bits a channel, 65535 with 16. Elsewhere white is
    the first of 1, 255 and 65535 that no value exceeds. Floats may overshoot it, as they do after
    resampling.

    With alpha, a pixel may change if its alpha is more than half of white. Alpha alone decides,
    unless the image is fully opaque, or its fully opaque pixels are a black-and-white drawing; then
    the pixel must also be light.

    Raises:
        TypeError: the mask is neither a PIL image, nor an array or tensor of numbers.
        ValueError: the mask has another shape or no pixel; its values are negative, too large or
            not finite; or it is a PIL image whose brightest value is 1.
    """
    white = None
    if isinstance(mask, PIL.Image.Image):
        values, white = _picture(mask)
    elif isinstance(mask, np.ndarray | Tensor):
        values = _channels_last(_numbers(mask))
    else:
        raise TypeError(
            f"mask is a {type(mask).__name__}; expected a PIL image, or an array or tensor of "
            f"shape {_SHAPES}"
        )
    if values.size == 0:
        raise ValueError(f"mask has no pixel: its shape is {list(values.shape[:3])}")
    if white is None:
        white = _white(values)
    elif values.max() == 1:
        raise ValueError(
            f"mask is a picture whose brightest value is 1 where white is {white}; multiply a mask "
            f"of 0 and 1 by {white}, or pass it as an array"
        )
    return torch.from_numpy(_may_change(values, white))


def _picture(image: PIL.Image.Image) -> tuple[np.ndarray, int | None]:
    """Return the pixels [1, H, W, C], and the value of white, or None if the mode has none."""
    if image.mode in ("I", "F"):
        return np.atleast_3d(np.asarray(image))[None], None
    if image.mode.startswith("I;16"):
        return _grey_16_bit(image), 65535
    if image.mode == "La":  # Pillow converts this mode, with premultiplied alpha, only to LA
        image = image.convert("LA")
    pixels = np.asarray(image.convert("RGBA" if image.has_transparency_data else "L"))
    return np.atleast_3d(pixels)[None], 255


def _grey_16_bit(image: PIL.Image.Image) -> np.ndarray:
    """Return the pixels [1, H, W, 1], or [1, H, W, 2] with alpha if one value is transparent."""
    grey = np.asarray(image)
    transparent = image.info.get("transparency")
    if transparent is None:
        return grey[None, ..., None]
    alpha = np.where(grey == transparent, 0, 65535)
    return np.stack([grey, alpha], axis=-1)[None]


def _numbers(mask: np.ndarray | Tensor) -> np.ndarray:
    """Return the mask as an array of integers or floats."""
    if isinstance(mask, Tensor):
        mask = mask.detach().cpu()
        # NumPy lacks some of PyTorch's float types
        mask = (mask.float() if mask.is_floating_point() else mask).numpy()
    if mask.dtype.kind not in "buif":
        raise TypeError(f"mask has values of type {mask.dtype}; expected numbers")
    return mask.astype(np.uint8) if mask.dtype.kind == "b" else mask


def _channels_last(values: np.ndarray) -> np.ndarray:
    """Return the values as [B, H, W, C]."""
    shape = values.shape
    if len(shape) == 2:
        return values[None, ..., None]
    if len(shape) == 3:
        # [H, W, C] if the last dimension is small enough, else [B, H, W]; [1, H, W] is a batch
        has_channels = shape[0] > 1 and shape[2] <= _MAX_CHANNELS
        return values[None] if has_channels else values[..., None]
    if len(shape) == 4 and shape[1] == 1:
        return values[:, 0, :, :, None]
    if len(shape) == 4 and shape[3] <= _MAX_CHANNELS:
        return values
    raise ValueError(f"mask has shape {list(shape)}; expected {_SHAPES}")


def _white(values: np.ndarray) -> int:
    """Return the value that stands for white: 1, 255 or 65535."""
    is_float = values.dtype.kind == "f"
    if is_float and not np.isfinite(values).all():
        raise ValueError("mask has values that are not finite; expected 0 (keep) to 1 (may change)")
    low, high = values.min().item(), values.max().item()
    max_value = 1 + _MAX_OVERSHOOT if is_float else 1  # as a fraction of white
    white = next((white for white in _WHITES if high <= max_value * white), None)
    if white is None or low < _lowest_value(white, high, is_float):
        raise ValueError(
            f"mask has values from {low:g} to {high:g}; expected 0 (keep) to 1, 255 or 65535 "
            "(may change): scale it"
        )
    return white


def _lowest_value(white: int, high: float, is_float: bool) -> float:
    """Return the lowest value that a mask may have whose highest value is `high`.

    Integers may not be negative. Resampled floats may fall below 0 by a fraction of `high`. For
    this, `high` is clamped to the range from 1 to white.
    """
    if not is_float:
        return 0
    reference = min(max(high, 1), white)
    return -_MAX_UNDERSHOOT * reference


def _may_change(values: np.ndarray, white: int) -> np.ndarray:
    """Decide which pixels may change: [B, H, W, C] to bool [B, H, W].

    `as_mask` states the rule. A pixel counts as fully opaque if its alpha is nearly white.
    """
    num_channels = values.shape[-1]
    has_colour, has_alpha = num_channels > 2, num_channels in (2, 4)
    colour = values[..., :3] if has_colour else values[..., :1]
    luminance = colour @ _LUMINANCE if has_colour else colour[..., 0]
    is_light = luminance > white / 2
    if not has_alpha:
        return is_light

    def any_pixel(pixels: np.ndarray) -> np.ndarray:  # [B, H, W] -> [B, 1, 1]
        return np.any(pixels, axis=(1, 2), keepdims=True)

    alpha = values[..., -1]
    is_opaque = alpha > (1 - _OPAQUE_TOLERANCE) * white
    is_coloured = np.ptp(colour, axis=-1) > _GREY_TOLERANCE * white
    is_drawn_in_black_and_white = (
        any_pixel(is_opaque & (luminance < _MAX_BLACK * white))
        & any_pixel(is_opaque & (luminance > _MIN_WHITE * white))
        & ~any_pixel(is_opaque & is_coloured)
    )
    is_all_opaque = np.all(is_opaque, axis=(1, 2), keepdims=True)
    luminance_counts = is_all_opaque | is_drawn_in_black_and_white
    return (alpha > white / 2) & (is_light | ~luminance_counts)


def same_aspect(size: Size, other: Size) -> bool:
    """Return whether one (height, width) is the other one, scaled and rounded to whole pixels."""
    return _is_scaled(size, other) or _is_scaled(other, size)


def _is_scaled(size: Size, original: Size) -> bool:
    """Return whether `size` is `original` scaled by the width or the height, to within a pixel."""
    height, width = size
    original_height, original_width = original
    scaled_height = original_height * width / original_width
    scaled_width = original_width * height / original_height
    return abs(height - scaled_height) < 1 or abs(width - scaled_width) < 1


def resized(mask: Tensor, size: Size) -> Tensor:
    """Scale bool [B, H, W] to `size`.

    A pixel of the result is True if it overlaps a True pixel of the mask.
    """
    return F.adaptive_max_pool2d(mask[:, None].float(), size)[:, 0] > 0


def cut(mask: Tensor, box: Box) -> Tensor:
    """Cut bool [B, H, W] to a part of the picture, to the nearest pixel."""
    _, height, width = mask.shape
    left, top, right, bottom = box
    rows = slice(round(top * height), round(bottom * height))
    columns = slice(round(left * width), round(right * width))
    return mask[:, rows, columns]


def token_mask(
    mask: Tensor,
    grid: Grid,
    batch: int,
    output_size: Size,
    source_size: Size | None,
    source_box: Box = WHOLE,
) -> Tensor:
    """Reduce a mask in pixels to tokens. A token may change if any of its pixels may.

    Args:
        mask: bool [1 or batch, H, W]. It has the size of the output, of the source or of the grid,
            or the aspect ratio of one of the first two.
        grid: token grid (rows, cols).
        batch: number of images in the call.
        output_size: (height, width) of the output.
        source_size: (height, width) of the source. If it is None, a mask that was drawn on the
            source could not be placed, so the mask must have the size of the output or of the grid.
        source_box: the part of the source that the output shows.

    Returns:
        bool [batch, rows * cols].

    Raises:
        ValueError: the mask has another size or another number of images.
    """
    size = (mask.shape[1], mask.shape[2])
    sizes = [output_size] if source_size is None else [source_size, output_size]
    expected = list(dict.fromkeys([*sizes, grid]))
    allow_scaled = source_size is not None
    is_scaled = allow_scaled and any(same_aspect(size, other) for other in sizes)
    if size not in expected and not is_scaled:
        raise ValueError(
            f"mask is {size[0]} x {size[1]} (height x width); expected the size of the source "
            f"image, of the output or of the token grid: "
            f"{', '.join(f'{h} x {w}' for h, w in expected)}"
            f"{', or another size of the same aspect' if allow_scaled else ''}"
        )
    if mask.shape[0] not in (1, batch):
        raise ValueError(
            f"mask is a batch of {mask.shape[0]}; expected 1 mask, or one for each of the {batch} "
            "images"
        )
    shows_output = size in (output_size, grid)
    if source_size is not None and not shows_output and same_aspect(size, source_size):
        mask = cut(mask, source_box)
    return resized(mask, grid).flatten(1).expand(batch, -1)


def mask_note(allowed: Tensor, mode: Mode) -> str | None:
    """Describe the effect of a mask that keeps or frees every token. None for any other mask.

    Args:
        allowed: bool [B, rows * cols], True where a token may change.
    """
    if not allowed.any():
        if mode == "union":
            return "the mask adds no token to those that were judged to change: it has no effect"
        return KEEPS_ALL
    if allowed.all():
        if mode == "intersect":
            return "the mask lets every token change, so it has no effect"
        return "the mask lets every token change, so all of them are regenerated"
    return None


def allowed_tokens(
    pipe: Any,
    spec: Spec,
    arguments: Arguments,
    mask: UserMask | None,
    grid: Grid,
    batch: int,
    source_index: int,
) -> tuple[UserMask | None, Tensor | None, str | None]:
    """Return the mask of a call, the same mask on tokens, and a note about it.

    If the user has set no mask, the mask that the pipeline itself was given counts.

    Args:
        arguments: the arguments of the pipeline's call.
        mask: the user's mask, or None.
        grid: token grid (rows, cols) of the output.
        batch: number of images in the call.
        source_index: index of the condition image that is the source.

    Returns:
        The mask; bool [batch, rows * cols], True where a token may change; and the `mask_note`.
        All three are None without a mask.

    Raises:
        ValueError: see `token_mask`.
    """
    token_side = spec.token_pixels(pipe)
    output_size = grid[0] * token_side, grid[1] * token_side
    if mask is None:
        pipeline_mask = spec.own_mask(pipe, arguments, output_size)
        if pipeline_mask is None:
            return None, None, None
        repeats = batch // len(pipeline_mask)
        mask = UserMask(pipeline_mask.repeat(repeats, 1, 1), "intersect")
    source_size = spec.source_size(arguments, source_index)
    source_box = spec.source_box(pipe, arguments, source_index) or WHOLE
    allowed = token_mask(mask.pixels, grid, batch, output_size, source_size, source_box)
    return mask, allowed, mask_note(allowed, mask.mode)
