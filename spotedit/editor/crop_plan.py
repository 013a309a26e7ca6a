"""Decide in which crops the changed parts of a photograph are edited again."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from ..options.choices import Box
from .boxes import Rectangle, around, components, crop_around, density, grown

CONTEXT = 0.25  # margin around a changed part, as a share of its longer side
MAX_CROPS = 4
MIN_GAIN = 1.25  # a crop shows the model at least this many times the pixels along a line
_MAX_PARTS = 24  # that are considered; comparing all pairs of more would take long
_MIN_COMMON = 0.7  # a common crop of two parts keeps at least this share of their resolution
_MULTIPLE = 16  # pixels; the side of a token in most models


@dataclass(frozen=True)
class Plan:
    """A changed part of the photograph, and the crop around it.

    Attributes:
        part: bool [rows, cols], the part of the region on the first edit's token grid.
        crop: the crop, in the photograph's pixels.
        core: bool [rows, cols], the tokens of the part that changed.
    """

    part: np.ndarray
    crop: Rectangle
    core: np.ndarray


def changed_tokens(region: np.ndarray, moved: np.ndarray | None) -> np.ndarray:
    """Return the tokens of a region that changed, and those of it that touch them.

    Args:
        region: bool [rows, cols].
        moved: the tokens of it that differ from the source, or None if that is unknown.
    """
    return region if moved is None else region & grown(region & moved)


def plan_crops(
    region: np.ndarray,
    moved: np.ndarray | None,
    box: Box,
    size: tuple[int, int],
    num_pixels: int,
    context: float = CONTEXT,
) -> tuple[list[Plan], list[str]]:
    """Decide which parts of a region are edited again, in which crops.

    Parts that fit into one crop at nearly the same resolution share it.

    Args:
        region, moved: see `changed_tokens`.
        box: the part of the photograph that the token grid covers.
        size: width and height of the photograph.
        num_pixels: number of pixels that the model works with.
        context: see `crop_around`.

    Returns:
        The plans, that of the largest part first, and sentences about the parts without a crop.
    """

    def plan(core: np.ndarray) -> Plan:
        crop = crop_around(around(core, box, size), size, num_pixels, context, _MULTIPLE)
        return Plan(region & grown(core), crop, core)

    cores = components(region if moved is None else region & moved)
    plans = _merged([plan(core) for core in cores[:_MAX_PARTS]], plan, num_pixels)
    min_density = MIN_GAIN * density(Rectangle(0, 0, *size), num_pixels)
    useful = [item for item in plans if density(item.crop, num_pixels) >= min_density]
    notes = []
    if len(useful) < len(plans):
        notes.append(
            f"{len(plans) - len(useful)} of {len(plans)} changed parts need a crop nearly as large "
            "as the photograph: the first edit is kept there"
        )
    num_left_out = len(useful[MAX_CROPS:]) + len(cores[_MAX_PARTS:])
    if num_left_out:
        notes.append(
            f"at most {MAX_CROPS} crops are edited: the first edit is kept in the {num_left_out} "
            "smallest changed parts"
        )
    return useful[:MAX_CROPS], notes


def _merged(plans: list[Plan], plan: Callable[[np.ndarray], Plan], num_pixels: int) -> list[Plan]:
    """Merge plans while two of them both keep most of their resolution in a common crop."""
    for one, other in combinations(plans, 2):
        common = plan(one.core | other.core)
        separate = max(density(item.crop, num_pixels) for item in (one, other))
        if density(common.crop, num_pixels) >= _MIN_COMMON * separate:
            rest = [item for item in plans if item is not one and item is not other]
            return _merged([common, *rest], plan, num_pixels)
    return sorted(plans, key=lambda item: np.count_nonzero(item.core), reverse=True)


def mask_in_crop(part: np.ndarray, box: Box, crop: Rectangle, size: tuple[int, int]) -> np.ndarray:
    """Return a part of the region in the pixels of a crop, bool [height, width].

    Args:
        part: bool [rows, cols].
        box: the part of the photograph that the token grid covers.
        size: width and height of the photograph.
    """
    rows, cols = part.shape
    left, top, right, bottom = box
    y = ((np.arange(crop.top, crop.bottom) + 0.5) / size[1] - top) / (bottom - top)
    x = ((np.arange(crop.left, crop.right) + 0.5) / size[0] - left) / (right - left)
    row, col = np.floor(y * rows).astype(int), np.floor(x * cols).astype(int)
    inside = ((row >= 0) & (row < rows))[:, None] & ((col >= 0) & (col < cols))
    return inside & part[row.clip(0, rows - 1)[:, None], col.clip(0, cols - 1)]
