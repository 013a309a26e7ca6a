"""Put the edited region back into the picture that was edited.

Pixels of the region become the edit's. Around the region, the edit fades into the original over
`FEATHER_TOKENS` tokens. Reused tokens hold the source there, so both pictures show the same and
nothing appears twice. All other pixels stay as they are.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
from PIL import Image

from ..options.choices import Box
from .colour import ColourSpace
from .pixels import Pixels, pixels_of

FEATHER_TOKENS = 1
_WHITE = 255
_VISIBLE = 24  # levels of 255: what a model changes by chance is less
_STRIP_PIXELS = 2**20  # the edit is scaled and blended in strips of about so many pixels


Edges = tuple[int, int, int, int]  # left, top, right and bottom, in pixels


class Placed(Protocol):
    """What can be put into a picture: a `PlacedEdit`, or several as `Layers`."""

    @property
    def is_empty(self) -> bool: ...

    def transposed(self, method: Image.Transpose) -> "Placed": ...

    def extent(self, size: tuple[int, int]) -> Edges: ...

    def opacity(self, size: tuple[int, int], box: Edges) -> np.ndarray: ...

    def colours(self, size: tuple[int, int], box: Edges) -> Image.Image: ...


@dataclass(frozen=True)
class PlacedEdit:
    """An edited picture, and where it goes in the original.

    Attributes:
        picture: the edited picture, RGB in sRGB.
        region: bool [rows, cols], the tokens of `picture` that replace the original.
        box: the part of the original that `picture` shows.
    """

    picture: Image.Image
    region: np.ndarray
    box: Box

    @property
    def is_empty(self) -> bool:
        """Tell whether the original stays as it is."""
        return not self.region.any()

    def transposed(self, method: Image.Transpose) -> "PlacedEdit":
        """Return the edit for an original that is mirrored or turned in the same way."""
        region = Image.fromarray(self.region.astype(np.uint8)).transpose(method)
        return PlacedEdit(
            self.picture.transpose(method),
            np.asarray(region, dtype=bool),
            _transposed_box(self.box, method),
        )

    def extent(self, size: tuple[int, int]) -> Edges:
        """Return the smallest box around the pixels that change, in an original of this size.

        Args:
            size: width and height.

        Returns:
            Left, top, right and bottom edge in pixels; all are 0 if no pixel changes.
        """
        columns, rows = _Axis.horizontal(self, size[0]), _Axis.vertical(self, size[1])
        left, right = columns.changing(self._corners.max(axis=0))
        top, bottom = rows.changing(self._corners.max(axis=1))
        return (left, top, right, bottom) if right > left and bottom > top else (0, 0, 0, 0)

    def opacity(self, size: tuple[int, int], box: Edges) -> np.ndarray:
        """Return how much of the edit shows, 0 to 1, in a part of an original of this size.

        Args:
            size: width and height of the original.
            box: left, top, right and bottom edge of the part, in pixels.

        Returns:
            fp32 [height, width] of the part.
        """
        left, top, right, bottom = box
        columns, rows = _Axis.horizontal(self, size[0]), _Axis.vertical(self, size[1])
        along_columns = rows.interpolate(self._corners, top, bottom)  # [height, cols + 1]
        opacity = columns.interpolate(along_columns.T, left, right).T
        return opacity * opacity * (3 - 2 * opacity)  # without a kink at either end

    def colours(self, size: tuple[int, int], box: Edges) -> Image.Image:
        """Return the edited picture, scaled to a part of an original of this size.

        Args:
            size: width and height of the original.
            box: left, top, right and bottom edge of the part, in pixels.
        """
        left, top, right, bottom = box
        columns, rows = _Axis.horizontal(self, size[0]), _Axis.vertical(self, size[1])
        margin = math.ceil(max(columns.pixels_per_original, rows.pixels_per_original))
        padded = np.pad(
            np.asarray(self.picture), ((margin, margin), (margin, margin), (0, 0)), mode="edge"
        )
        part = (
            columns.position(left) + margin,
            rows.position(top) + margin,
            columns.position(right) + margin,
            rows.position(bottom) + margin,
        )
        return Image.fromarray(padded).resize(
            (right - left, bottom - top), Image.Resampling.LANCZOS, box=part
        )

    @cached_property
    def _corners(self) -> np.ndarray:
        """Opacity at the corners of the tokens, fp32 [rows + 1, cols + 1].

        It is 1 at the corners of the region's tokens. So a token of the region has opacity 1
        everywhere, a neighbour of one fades to 0, and any other token has opacity 0. Where the
        output shows less than the original, the edit fades out inside its own border.
        """
        rows, cols = self.region.shape
        corners = np.zeros((rows + 1, cols + 1), dtype=np.float32)
        for row, col in ((0, 0), (0, 1), (1, 0), (1, 1)):
            corners[row : row + rows, col : col + cols] += self.region
        corners = np.minimum(corners, 1)
        left, top, right, bottom = self.box
        corners[:, 0] *= left <= 0
        corners[0] *= top <= 0
        corners[:, -1] *= right >= 1
        corners[-1] *= bottom >= 1
        return corners


@dataclass(frozen=True)
class _Axis:
    """One direction of the placement.

    Attributes:
        side: pixels of the original.
        start, end: where the output begins and ends, in pixels of the original.
        num_tokens: tokens of the output.
        num_pixels: pixels of the output.
    """

    side: int
    start: float
    end: float
    num_tokens: int
    num_pixels: int

    @classmethod
    def horizontal(cls, edit: PlacedEdit, width: int) -> "_Axis":
        left, _, right, _ = edit.box
        return cls(width, left * width, right * width, edit.region.shape[1], edit.picture.width)

    @classmethod
    def vertical(cls, edit: PlacedEdit, height: int) -> "_Axis":
        _, top, _, bottom = edit.box
        return cls(height, top * height, bottom * height, edit.region.shape[0], edit.picture.height)

    @property
    def pixels_per_original(self) -> float:
        """Pixels of the output for one of the original."""
        return self.num_pixels / (self.end - self.start)

    def position(self, edge: float) -> float:
        """Return the place in the output, in pixels, of an edge in the original."""
        return (edge - self.start) * self.pixels_per_original

    def changing(self, corners: np.ndarray) -> tuple[int, int]:
        """Return the first pixel, and the one after the last, between corners that are not 0.

        Args:
            corners: [num_tokens + 1].
        """
        (opaque,) = np.nonzero(corners)
        if len(opaque) == 0:
            return 0, 0
        token = (self.end - self.start) / self.num_tokens
        first = max(self.start, self.start + (opaque[0] - 1) * token)
        last = min(self.end, self.start + (opaque[-1] + 1) * token)
        # a pixel belongs to the output if its centre does
        return max(0, math.ceil(first - 0.5)), min(self.side, math.floor(last - 0.5) + 1)

    def interpolate(self, corners: np.ndarray, start: int, end: int) -> np.ndarray:
        """Interpolate [num_tokens + 1, n] at the centres of pixels: [end - start, n].

        It is 0 at pixels outside the output.
        """
        centres = np.arange(start, end) + 0.5
        place = (centres - self.start) / (self.end - self.start) * self.num_tokens
        token = np.clip(place.astype(int), 0, self.num_tokens - 1)
        fraction = (place - token).astype(np.float32)[:, None]
        values = (1 - fraction) * corners[token] + fraction * corners[token + 1]
        is_inside = (place >= 0) & (place <= self.num_tokens)
        return np.where(is_inside[:, None], values, 0)


def _transposed_box(box: Box, method: Image.Transpose) -> Box:
    left, top, right, bottom = box
    boxes: dict[Image.Transpose, Box] = {
        Image.Transpose.FLIP_LEFT_RIGHT: (1 - right, top, 1 - left, bottom),
        Image.Transpose.FLIP_TOP_BOTTOM: (left, 1 - bottom, right, 1 - top),
        Image.Transpose.ROTATE_180: (1 - right, 1 - bottom, 1 - left, 1 - top),
        Image.Transpose.ROTATE_90: (top, 1 - right, bottom, 1 - left),
        Image.Transpose.ROTATE_270: (1 - bottom, left, 1 - top, right),
        Image.Transpose.TRANSPOSE: (top, left, bottom, right),
        Image.Transpose.TRANSVERSE: (1 - bottom, 1 - right, 1 - top, 1 - left),
    }
    return boxes[method]


def strips(edit: Placed, size: tuple[int, int]) -> Iterator[Edges]:
    """Yield boxes that together cover `edit.extent(size)`, none larger than `_STRIP_PIXELS`."""
    left, top, right, bottom = edit.extent(size)
    if right == left:
        return
    height = max(1, _STRIP_PIXELS // (right - left))
    for start in range(top, bottom, height):
        yield left, start, right, min(start + height, bottom)


def paste(pixels: Pixels, edit: Placed) -> list[str]:
    """Put the edit into the pixels, in place.

    Returns:
        Sentences about what of the edit the original cannot show.
    """
    space = ColourSpace(pixels.colours, pixels.values.dtype, pixels.profile)
    size = pixels.values.shape[1], pixels.values.shape[0]
    loses_colour = loses_pixels = False
    for box in strips(edit, size):
        left, top, right, bottom = box
        view = pixels.values[top:bottom, left:right]
        opacity, colours = edit.opacity(size, box), edit.colours(size, box)
        levels = np.asarray(colours)
        shows = opacity == 1
        if pixels.colours == "L":
            loses_colour |= bool((np.ptp(levels[shows], axis=-1) > _VISIBLE).any())
        if pixels.has_alpha:
            is_hidden = shows & (view[..., -1] == 0)
            loses_pixels |= bool((levels[is_hidden] < _WHITE - _VISIBLE).any())
        view[...] = blend(view, space.from_srgb(colours), opacity, pixels)
    notes = []
    if loses_colour:
        notes.append("the picture is grey, and so the edit in it is grey too")
    if loses_pixels:
        notes.append("the edit does not show where the picture is transparent")
    return notes


def blend(
    original: np.ndarray, colours: np.ndarray, opacity: np.ndarray, layout: Pixels
) -> np.ndarray:
    """Return the original, mixed with the colours of an edit.

    Args:
        original: [h, w, C], with alpha as the last channel if `layout.has_alpha`.
        colours: [h, w, C without alpha], of the same type and colour space. They show the original
            on white, as `load_image` makes it for the model.
        opacity: fp32 [h, w], how much of the edit shows.
        layout: what the channels are.
    """
    mixed = colours.astype(np.float32)
    opacity = opacity[..., None]
    num_colours = mixed.shape[-1]
    before = original[..., :num_colours].astype(np.float32)
    if layout.has_alpha:
        white = layout.white
        alpha = original[..., -1:].astype(np.float32) / white
        # what gives the edit's colour on white; transparent pixels keep theirs
        visible = np.maximum(alpha, 1 / white)
        mixed = np.clip((mixed - (1 - alpha) * white) / visible, 0, white)
        opacity = np.where(alpha > 0, opacity, 0)
    result = original.copy()
    result[..., :num_colours] = np.rint(before + opacity * (mixed - before))
    return result


def composite(original: Image.Image, edit: Placed) -> Image.Image:
    """Return the original with the edit in it. Its mode stays, see `pixels_of`, and its `info`.

    Raises:
        ImageError: the pixels are floats, or integers outside 0..65535.
    """
    if edit.is_empty:
        return original.copy()
    pixels = pixels_of(original)
    paste(pixels, edit)
    result = pixels.to_image()
    result.info = dict(original.info)
    if original.mode != result.mode:
        result.info.pop("transparency", None)
    return result
