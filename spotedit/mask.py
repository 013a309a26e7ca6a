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

from .models.spec import Arguments, Grid, Spec

MODES: tuple[Mode, ...] = ("intersect", "union", "replace")


@dataclass(frozen=True)
class UserMask:
    """bool [1 or B, H, W] in pixels, and how it meets the judgement (`select_tokens`)."""

    pixels: Tensor
    mode: Mode


def as_mask(mask: object) -> Tensor:
    """A user's mask as bool [B, H, W] on the CPU; white (True, > 0.5, > 127) may change.

    Raises:
        TypeError: neither a PIL image, an array nor a tensor.
        ValueError: neither [H, W] nor [B, H, W], or empty, or not finite.
    """
    if isinstance(mask, PIL.Image.Image):
        values = torch.from_numpy(np.array(mask.convert("L")))
    elif isinstance(mask, np.ndarray | Tensor):
        values = torch.as_tensor(mask).detach().cpu()
    else:
        raise TypeError(
            f"mask is a {type(mask).__name__}; expected a PIL image, or an array or tensor of "
            "shape [H, W] or [B, H, W]"
        )
    if values.ndim not in (2, 3) or values.numel() == 0:
        raise ValueError(f"mask has shape {list(values.shape)}; expected [H, W] or [B, H, W]")
    if values.is_floating_point() and not bool(values.isfinite().all()):
        raise ValueError("mask has values that are not finite; expected 0 (keep) to 1 (may change)")
    if values.dtype != torch.bool:
        values = values > (0.5 if values.is_floating_point() or int(values.max()) <= 1 else 127)
    return values if values.ndim == 3 else values[None]


def token_mask(mask: Tensor, grid: Grid, batch: int, sizes: Sequence[Grid]) -> Tensor:
    """A pixel mask on the token grid: a token may change where any of its pixels may.

    Args:
        mask: bool [1 or batch, H, W].
        grid: token grid (rows, cols).
        batch: images in the call.
        sizes: sizes (height, width) that the mask may have: the source's and the output's.

    Returns:
        bool [batch, rows * cols].

    Raises:
        ValueError: another size or batch.
    """
    size = (mask.shape[1], mask.shape[2])
    allowed = list(dict.fromkeys([*sizes, grid]))
    if size not in allowed:
        raise ValueError(
            f"mask is {size[0]} x {size[1]} (height x width); expected the size of the source "
            f"image, of the output or of the token grid: "
            f"{', '.join(f'{h} x {w}' for h, w in allowed)}"
        )
    if mask.shape[0] not in (1, batch):
        raise ValueError(
            f"mask has {mask.shape[0]} rows; expected 1 or one for each of the {batch} images"
        )
    tokens = F.adaptive_max_pool2d(mask[:, None].float(), grid).flatten(1) > 0
    return tokens.expand(batch, -1)


def allowed_tokens(
    pipe: Any,
    spec: Spec,
    arguments: Arguments,
    mask: UserMask | None,
    grid: Grid,
    batch: int,
    number: int,
) -> tuple[UserMask | None, Tensor | None]:
    """The mask of a call, the pipeline's own where the user set none, and the same on tokens.

    Args:
        arguments: of the pipeline's call.
        number: of the condition image that is the source.

    Returns:
        The mask and bool [batch, rows * cols], or None twice.

    Raises:
        ValueError: see `token_mask`.
    """
    side = spec.token_pixels(pipe)
    size = grid[0] * side, grid[1] * side
    if mask is None:
        own = spec.own_mask(pipe, arguments, size)
        if own is None:
            return None, None
        mask = UserMask(own.repeat(batch // len(own), 1, 1), "intersect")
    source = spec.source_size(arguments, number)
    sizes = [size] if source is None else [source, size]
    return mask, token_mask(mask.pixels, grid, batch, sizes)
