"""Masks: from what the user painted over a picture, and back."""

from collections.abc import Iterable

import numpy as np
from PIL import Image

BRUSH = (43, 108, 176)  # blue, RGB: the colour of the region in reports
BRUSH_OPACITY = 0.6
_MIN_ALPHA = 32  # a painted pixel is at least this opaque; the soft edge of a stroke is not


def painted_mask(layers: Iterable[Image.Image]) -> Image.Image | None:
    """Return a mask that is white where any layer is painted, in mode L.

    Returns:
        None if nothing is painted.
    """
    painted = None
    for layer in layers:
        opaque = np.asarray(layer.convert("RGBA"))[..., 3] >= _MIN_ALPHA
        painted = opaque if painted is None else painted | opaque
    if painted is None or not painted.any():
        return None
    return Image.fromarray(painted).convert("L")


def paint(mask: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Return a layer [RGBA] of this (width, height) that is painted where the mask is white."""
    alpha = mask.convert("L").resize(size, Image.Resampling.NEAREST)
    layer = Image.new("RGBA", size, BRUSH)
    layer.putalpha(alpha.point(lambda value: round(BRUSH_OPACITY * 255) if value > 127 else 0))
    return layer
