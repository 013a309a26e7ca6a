"""The user's mask: where the picture may change."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import PIL.Image
import torch
import torch.nn.functional as F
from spotedit_kernels.select_tokens import Mode
from torch import Tensor

from ..models.spec import Arguments, Spec
from ..options.choices import Grid

MODES: tuple[Mode, ...] = ("intersect", "union", "replace")
KEEPS_ALL = "the mask keeps every token, so the picture is the source"
_WHITES = (1, 255, 65535)
_MOST_CHANNELS = 4
_LUMINANCE = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # Pillow's weights of R, G, B
_GREY_TOLERANCE = 1 / 16  # difference of R, G and B, as lossy formats leave it, / white
_OPAQUE_TOLERANCE = 1 / 512  # / white
_SHAPES = "[H, W], [B, H, W], [B, 1, H, W], [H, W, C] or [B, H, W, C] with up to 4 channels C"


@dataclass(frozen=True)
class UserMask:
    """bool [1 or B, H, W] in pixels, and how it meets the judgement (`select_tokens`)."""

    pixels: Tensor
    mode: Mode


def as_mask(mask: object) -> Tensor:
    """Read a mask as bool [B, H, W] on the CPU; True may change.

    A mask may be a PIL image of any mode, or an array or tensor of any integer or float type and
    of shape [H, W], [B, H, W], [B, 1, H, W], [H, W, C] or [B, H, W, C]. A last dimension of up to 4
    is C: grey, grey and alpha, RGB, or RGBA.

    Without transparency, what is brighter than half of white may change. White is 255 in a PIL
    image of 8 bits a channel and 65535 in one of 16, whatever its pixels are, because the mode
    says so. Elsewhere it is the first of 1, 255 and 65535 that no value exceeds; floats may
    overshoot it, as they do after resampling.

    With transparency, the paint counts: what is more than half opaque may change, whatever its
    colour. Where the opaque pixels are a drawing in black and white, its white may change.

    Raises:
        TypeError: neither a PIL image, nor an array or tensor of numbers.
        ValueError: another shape, or empty; values that are negative, too large or not finite; or
            a PIL image whose brightest value is 1.
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
    """Return the image as [1, H, W, C], and its white, or None where the mode does not say it."""
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        grey, white = np.asarray(image), None if image.mode in ("I", "F") else 65535
        transparent = image.info.get("transparency")
        if white is not None and transparent is not None:
            grey = np.stack([grey, np.where(grey == transparent, 0, white)], axis=-1)
        return np.atleast_3d(grey)[None], white
    if image.mode == "La":
        image = image.convert("LA")
    pixels = np.asarray(image.convert("RGBA" if image.has_transparency_data else "L"))
    return np.atleast_3d(pixels)[None], 255


def _numbers(mask: np.ndarray | Tensor) -> np.ndarray:
    if isinstance(mask, Tensor):
        mask = mask.detach().cpu()
        # NumPy lacks some of PyTorch's float types
        mask = (mask.float() if mask.is_floating_point() else mask).numpy()
    if mask.dtype.kind not in "buif":
        raise TypeError(f"mask has values of type {mask.dtype}; expected numbers")
    return mask.astype(np.uint8) if mask.dtype.kind == "b" else mask


def _channels_last(values: np.ndarray) -> np.ndarray:
    """Return [B, H, W, C]."""
    shape = values.shape
    if len(shape) == 2:
        return values[None, ..., None]
    if len(shape) == 3:
        return values[None] if shape[0] > 1 and shape[2] <= _MOST_CHANNELS else values[..., None]
    if len(shape) == 4 and shape[1] == 1:
        return values[:, 0, :, :, None]
    if len(shape) == 4 and shape[3] <= _MOST_CHANNELS:
        return values
    raise ValueError(f"mask has shape {list(shape)}; expected {_SHAPES}")


def _white(values: np.ndarray) -> int:
    """Return the value that stands for white: 1, 255 or 65535."""
    floating = values.dtype.kind == "f"
    if floating and not np.isfinite(values).all():
        raise ValueError("mask has values that are not finite; expected 0 (keep) to 1 (may change)")
    low, high = values.min().item(), values.max().item()
    white = next((white for white in _WHITES if high <= (2 * white if floating else white)), None)
    if white is None or low < (-0.5 * min(white, max(high, 1)) if floating else 0):
        raise ValueError(
            f"mask has values from {low:g} to {high:g}; expected 0 (keep) to 1, 255 or 65535 "
            "(may change): scale it"
        )
    return white


def _may_change(values: np.ndarray, white: int) -> np.ndarray:
    """Decide by luminance or alpha: [B, H, W, C] to bool [B, H, W]."""
    num_channels, half = values.shape[-1], white / 2
    colour = values[..., :3] if num_channels > 2 else values[..., :1]
    luminance = colour @ _LUMINANCE if num_channels > 2 else colour[..., 0]
    light = luminance > half
    if num_channels in (1, 3):
        return light
    alpha = values[..., -1]
    opaque = alpha > (1 - _OPAQUE_TOLERANCE) * white
    coloured = np.ptp(colour, axis=-1) > _GREY_TOLERANCE * white
    black_and_white = (  # bool [B, 1, 1]
        (opaque & (luminance < white / 3)).any(axis=(1, 2), keepdims=True)
        & (opaque & (luminance > 2 * white / 3)).any(axis=(1, 2), keepdims=True)
        & ~(opaque & coloured).any(axis=(1, 2), keepdims=True)
    )
    by_luminance = black_and_white | opaque.all(axis=(1, 2), keepdims=True)
    return (alpha > half) & (light | ~by_luminance)


def same_aspect(size: Grid, other: Grid) -> bool:
    """Tell whether one (height, width) is the other one scaled and rounded to whole pixels."""
    return any(
        abs(a[side] - b[side] * a[1 - side] / b[1 - side]) < 1
        for a, b in ((size, other), (other, size))
        for side in (0, 1)
    )


def resized(mask: Tensor, size: Grid) -> Tensor:
    """Scale bool [B, H, W] to `size`; True wherever a pixel touches one that was True."""
    return F.adaptive_max_pool2d(mask[:, None].float(), size)[:, 0] > 0


def token_mask(
    mask: Tensor, grid: Grid, batch: int, sizes: Sequence[Grid], scaled: bool = True
) -> Tensor:
    """A pixel mask on the token grid: a token may change where any of its pixels may.

    Args:
        mask: bool [1 or batch, H, W].
        grid: token grid (rows, cols).
        batch: images in the call.
        sizes: sizes (height, width) that the mask may have: the source's and the output's.
        scaled: also accept another size of the same aspect.

    Returns:
        bool [batch, rows * cols].

    Raises:
        ValueError: another size or batch.
    """
    size = (mask.shape[1], mask.shape[2])
    allowed = list(dict.fromkeys([*sizes, grid]))
    if size not in allowed and not (scaled and any(same_aspect(size, other) for other in sizes)):
        raise ValueError(
            f"mask is {size[0]} x {size[1]} (height x width); expected the size of the source "
            f"image, of the output or of the token grid: "
            f"{', '.join(f'{h} x {w}' for h, w in allowed)}"
            f"{', or another size of the same aspect' if scaled else ''}"
        )
    if mask.shape[0] not in (1, batch):
        raise ValueError(
            f"mask has {mask.shape[0]} rows; expected 1 or one for each of the {batch} images"
        )
    return resized(mask, grid).flatten(1).expand(batch, -1)


def mask_note(allowed: Tensor, mode: Mode) -> str | None:
    """Say what a mask does that keeps or frees all tokens; None for any other.

    Args:
        allowed: bool [B, rows * cols], True may change.
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
    number: int,
) -> tuple[UserMask | None, Tensor | None, str | None]:
    """The mask of a call, the pipeline's own where the user set none, and the same on tokens.

    Args:
        arguments: of the pipeline's call.
        number: of the condition image that is the source.

    Returns:
        The mask, bool [batch, rows * cols] and its `mask_note`, or None three times.

    Raises:
        ValueError: see `token_mask`.
    """
    side = spec.token_pixels(pipe)
    size = grid[0] * side, grid[1] * side
    if mask is None:
        own = spec.own_mask(pipe, arguments, size)
        if own is None:
            return None, None, None
        mask = UserMask(own.repeat(batch // len(own), 1, 1), "intersect")
    source = spec.source_size(arguments, number)
    sizes = [size] if source is None else [source, size]
    # where the model sees only a part of the source, a mask of the source would be misplaced
    allowed = token_mask(mask.pixels, grid, batch, sizes, scaled=source is not None)
    return mask, allowed, mask_note(allowed, mask.mode)
