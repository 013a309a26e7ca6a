"""Measure how close two pictures are where an edit should not show.

Pictures are uint8 [H, W, 3].
"""

import numpy as np
from PIL import Image

MARGIN = 2  # number of tokens between the regenerated region and the background


def squared_error(a: np.ndarray, b: np.ndarray, where: np.ndarray) -> float:
    """Return the mean squared difference over the pixels `where`, bool [H, W]; nan for none."""
    if not where.any():
        return float("nan")
    return float(np.mean((a[where].astype(np.float64) - b[where]) ** 2))


def psnr(a: np.ndarray, b: np.ndarray, where: np.ndarray) -> float:
    """Return the peak signal-to-noise ratio in dB over the pixels `where`; nan for none."""
    error = squared_error(a, b, where)
    return float("inf") if error == 0 else float(10 * np.log10(255**2 / error))


def background(region: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return the pixels of the background: all tokens farther than `MARGIN` from the active ones.

    Args:
        region: bool [rows, cols], True = active token.
        size: (height, width) of the picture in pixels.

    Returns:
        bool [height, width].
    """
    return pixels(~grown(region, MARGIN), size)


def seam(region: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return the pixels of the reused tokens that touch an active token, also at a corner.

    Arguments and result are those of `background`.
    """
    return pixels(grown(region, 1) & ~region, size)


def grown(region: np.ndarray, by: int) -> np.ndarray:
    """Return `region` grown by `by` tokens on every side."""
    windows = np.lib.stride_tricks.sliding_window_view(np.pad(region, by), (2 * by + 1,) * 2)
    return np.asarray(windows.any(axis=(2, 3)))


def pixels(tokens: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return the pixels of the True `tokens`. Arguments and result are those of `background`."""
    enlarged = Image.fromarray(tokens).resize(size[::-1], Image.Resampling.NEAREST)
    return np.asarray(enlarged, dtype=bool)
