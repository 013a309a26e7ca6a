"""Run-length masks of PIE-Bench and PIE-Bench++."""

from collections.abc import Sequence

import numpy as np

EMPTY, FULL = "mask is empty", "mask is full"
SIDE = 512  # pixels; the encoding does not say its size, the benchmarks' pictures all have this one


def decode(runs: object) -> tuple[np.ndarray | None, str | None]:
    """A mask, and what is wrong with it.

    As the benchmark's own decoder has it, a run beyond the last pixel is cut there, and the four
    border rows and columns are edited.

    Args:
        runs: start, length, start, length, ... over the row-major pixels; 1 = edited.

    Returns:
        (bool [512, 512], None); with `EMPTY` or `FULL` instead of None if no pixel was edited
        before the border was, or all are: one part can be measured still; or (None, why it is not
        such a list).
    """
    if not isinstance(runs, Sequence) or not all(type(value) is int for value in runs):
        return None, "mask is no list of whole numbers"
    starts, lengths = runs[::2], runs[1::2]
    flat = np.zeros(SIDE * SIDE, dtype=bool)
    inside = all(0 <= start < flat.size for start in starts) and all(n >= 0 for n in lengths)
    if len(runs) % 2 or not inside:
        return None, "mask of wrong length"
    for start, length in zip(starts, lengths, strict=True):
        flat[start : start + length] = True
    problem = None if flat.any() else EMPTY
    mask = flat.reshape(SIDE, SIDE)
    mask[[0, -1]] = True
    mask[:, [0, -1]] = True
    return mask, FULL if mask.all() else problem


def parse(encoded: object) -> object:
    """Runs from PIE-Bench++'s string of numbers; anything else comes back as it is."""
    if isinstance(encoded, str):
        try:
            return [int(part) for part in encoded.split()]
        except ValueError:
            return encoded
    return encoded
