"""EXIF orientations: how the pixels of a file are turned to be shown, and turned back."""

import numpy as np
from PIL import ExifTags, Image

from ..composite import Placed

_SHOW = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_STORE = _SHOW | {6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}


def orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 (upright) to 8."""
    value = image.getexif().get(ExifTags.Base.Orientation, 1)
    return int(value) if value in _SHOW else 1


def as_stored(edit: Placed, turn: int) -> Placed:
    """Return an edit of the picture as it is shown, for the pixels as the file holds them."""
    return edit.transposed(_STORE[turn]) if turn in _STORE else edit


def as_shown(values: np.ndarray, turn: int) -> np.ndarray:
    """Turn pixels [H, W, C] as the file holds them to be shown."""
    if turn >= 5:  # 5 to 8 also exchange rows and columns
        values = values.transpose(1, 0, 2)
    if turn in (3, 4, 7, 8):
        values = values[::-1]
    if turn in (2, 3, 6, 7):
        values = values[:, ::-1]
    return np.ascontiguousarray(values)
