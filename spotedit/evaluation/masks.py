"""Decode the run-length masks of PIE-Bench and PIE-Bench++."""

from collections.abc import Sequence

import numpy as np

EMPTY, FULL = "mask is empty", "mask is full"
SIDE = (
    512  # pixels; the encoding does not give a size, and all pictures of the benchmarks have this
)


def decode(runs: object) -> tuple[np.ndarray | None, str | None]:
    """Return a mask and its problem.

    Like the benchmark's own decoder, this cuts a run at the last pixel, and marks the first and the
    last row and column as edited.

    Args:
        runs: start, length, start, length, ... over the row-major pixels. A run is edited.

    Returns:
        The mask as bool [512, 512], or None if `runs` is not such a list; and the problem, or None.
        `EMPTY` (no pixel is edited, apart from the border) and `FULL` (all pixels are edited) are
        problems of a mask that can still measure one part of the picture.
    """
    if not isinstance(runs, Sequence) or not all(type(value) is int for value in runs):
        return None, "mask is no list of whole numbers"
    starts, lengths = runs[::2], runs[1::2]
    flat = np.zeros(SIDE * SIDE, dtype=bool)
    starts_are_inside = all(0 <= start < flat.size for start in starts)
    if len(runs) % 2 or not starts_are_inside or any(length < 0 for length in lengths):
        return None, "mask of wrong length"
    for start, length in zip(starts, lengths, strict=True):
        flat[start : start + length] = True
    problem = None if flat.any() else EMPTY
    mask = flat.reshape(SIDE, SIDE)
    mask[[0, -1]] = True
    mask[:, [0, -1]] = True
    return mask, FULL if mask.all() else problem


def parse(encoded: object) -> object:
    """Return the runs in PIE-Bench++'s string of numbers. Any other value is returned unchanged."""
    if isinstance(encoded, str):
        try:
            return [int(part) for part in encoded.split()]
        except ValueError:
            return encoded
    return encoded
