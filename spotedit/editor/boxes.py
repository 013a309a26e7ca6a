"""Find where a photograph changes, in pixels, and choose the crops to edit again."""

import math
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from ..options.choices import Box

_MAX_ASPECT = 2.0  # of a crop, if the photograph allows; models know few longer pictures
_ROUNDING = 1e-6  # pixels; edges of tokens are products of fractions


class Rectangle(NamedTuple):
    """A part of a picture in whole pixels. `right` and `bottom` are exclusive."""

    left: int
    top: int
    right: int
    bottom: int

    @property
    def width(self) -> int:
        return self.right - self.left

    @property
    def height(self) -> int:
        return self.bottom - self.top

    @property
    def size(self) -> tuple[int, int]:
        """Width and height."""
        return self.width, self.height

    @property
    def num_pixels(self) -> int:
        return self.width * self.height


def components(region: np.ndarray) -> list[np.ndarray]:
    """Split a region, bool [rows, cols], into its connected parts, the largest first.

    Tokens that touch at a corner are connected. Each part has the shape of the region.
    """
    inside = torch.from_numpy(region)[None].double()
    labels = torch.arange(1, region.size + 1).double().view_as(inside) * inside
    spread = torch.zeros_like(labels)
    while not torch.equal(spread, labels):
        spread, labels = labels, F.max_pool2d(labels, 3, stride=1, padding=1) * inside
    parts = [(labels[0] == label).numpy() for label in labels.unique() if label]
    return sorted(parts, key=np.count_nonzero, reverse=True)


def grown(region: np.ndarray) -> np.ndarray:
    """Return a region, bool [rows, cols], with all tokens that touch it."""
    return (
        F.max_pool2d(torch.from_numpy(region)[None].float(), 3, stride=1, padding=1)[0].numpy() > 0
    )


def around(region: np.ndarray, box: Box, size: tuple[int, int]) -> Rectangle:
    """Return the smallest rectangle that covers a region.

    Args:
        region: bool [rows, cols] with a True token.
        box: the part of the photograph that the token grid covers.
        size: width and height of the photograph.
    """
    rows, cols = (np.flatnonzero(region.any(axis=axis)) for axis in (1, 0))
    left, right = _edges(cols, region.shape[1], box[0], box[2], size[0])
    top, bottom = _edges(rows, region.shape[0], box[1], box[3], size[1])
    return Rectangle(left, top, right, bottom)


def _edges(
    tokens: np.ndarray, num_tokens: int, start: float, end: float, side: int
) -> tuple[int, int]:
    """Return the pixels at which tokens begin and end, on an axis of `side` pixels."""
    first, last = (
        side * (start + (end - start) * token / num_tokens)
        for token in (int(tokens[0]), int(tokens[-1]) + 1)
    )
    return math.floor(first + _ROUNDING), math.ceil(last - _ROUNDING)


def crop_around(
    changed: Rectangle, size: tuple[int, int], num_pixels: int, context: float, multiple: int
) -> Rectangle:
    """Return the crop in which a part of a photograph is edited again.

    The crop has at least `num_pixels` pixels if the photograph has, so that the model sees nothing
    enlarged. It is about square if the part and the photograph allow it. A part at the left of
    the photograph lies at the left of the crop, so that instructions keep their meaning.

    Args:
        changed: what the crop must contain.
        size: width and height of the photograph.
        num_pixels: number of pixels that the model works with.
        context: margin on each side, as a share of the longer side of `changed`.
        multiple: the crop's sides are multiples of this if the photograph is large enough.
    """
    margin = round(context * max(changed.size))
    width, height = float(changed.width + 2 * margin), float(changed.height + 2 * margin)
    width, height = max(width, height / _MAX_ASPECT), max(height, width / _MAX_ASPECT)
    if width * height < num_pixels:  # grow the shorter side first, up to a square
        width = max(width, min(math.sqrt(num_pixels), num_pixels / height))
        height = num_pixels / width
    # if the photograph limits one side, the other one makes up for it
    width, height = min(width, size[0]), min(height, size[1])
    width, height = max(width, num_pixels / height), max(height, num_pixels / width)
    columns, rows = _rounded_up(width, multiple, size[0]), _rounded_up(height, multiple, size[1])
    left = _start(changed.left, changed.right, margin, columns, size[0])
    top = _start(changed.top, changed.bottom, margin, rows, size[1])
    return Rectangle(left, top, left + columns, top + rows)


def _rounded_up(side: float, multiple: int, limit: int) -> int:
    return min(math.ceil(side / multiple) * multiple, limit)


def _start(low: int, high: int, margin: int, side: int, limit: int) -> int:
    """Return where a crop of `side` pixels begins, on an axis of `limit` pixels.

    The crop contains the pixels from `low` to `high`, with the margin on both sides if it fits.
    """
    centre = (low + high) / 2
    start = round(centre * (1 - side / limit))  # the same relative place as in the photograph
    space = max(0, min(margin, (side - (high - low)) // 2))
    start = min(max(start, high + space - side), low - space)
    return min(max(start, 0), limit - side)


def density(part: Rectangle, num_pixels: int) -> float:
    """Return how many pixels of the model there are, along a line, for one of the photograph.

    Args:
        part: what the model is shown.
        num_pixels: number of pixels that the model works with.
    """
    return min(1.0, math.sqrt(num_pixels / part.num_pixels))


def box_in_crop(box: Box, size: tuple[int, int], crop: Rectangle) -> Box:
    """Return a part of the photograph, in fractions of a crop's sides."""
    width, height = size
    left, top, right, bottom = box
    return (
        (left * width - crop.left) / crop.width,
        (top * height - crop.top) / crop.height,
        (right * width - crop.left) / crop.width,
        (bottom * height - crop.top) / crop.height,
    )


def box_in_photo(box: Box, size: tuple[int, int], crop: Rectangle) -> Box:
    """Return a part of a crop, in fractions of the photograph's sides."""
    width, height = size
    left, top, right, bottom = box
    return (
        (crop.left + left * crop.width) / width,
        (crop.top + top * crop.height) / height,
        (crop.left + right * crop.width) / width,
        (crop.top + bottom * crop.height) / height,
    )
