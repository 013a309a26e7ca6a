"""Compute statistics of judgements and edits. Masks are bool [H, W]."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageFilter

EDITED_SHARE = 0.1  # a token is edited if at least this share of its pixels is
VISIBLE = 10.0  # a token's pixels visibly differ if their mean `difference` is above this, of 255
_BLUR = 2.0  # radius in pixels; the noise of compression is finer


def changed_share(mask: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """Return the share of each token's pixels that are in `mask`, 0..1; `grid` is (rows, cols)."""
    rows, cols = grid
    height, width = mask.shape[0] // rows, mask.shape[1] // cols
    return mask.reshape(rows, height, cols, width).mean(axis=(1, 3))


# SciPy is imported where it is used: bench.quality runs without it on a GPU machine.


def auc(scores: np.ndarray, truth: np.ndarray) -> float:
    """Return the chance that a True element scores above a False one; ties count half.

    It is nan if `truth` has elements of one kind only.
    """
    from scipy.stats import mannwhitneyu

    scores, truth = np.ravel(scores).astype(np.float64), np.ravel(truth)
    if truth.all() or not truth.any():
        return float("nan")
    true, false = scores[truth], scores[~truth]
    wins = mannwhitneyu(true, false, method="asymptotic").statistic
    return float(wins / (true.size * false.size))


def difference(a: np.ndarray, b: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """Return the mean absolute difference of the blurred pictures by token, [rows, cols], 0..255.

    `a` and `b` are uint8 [H, W, 3]; their sides are multiples of those of the grid (rows, cols).
    """
    blur = ImageFilter.GaussianBlur(_BLUR)
    smooth_a, smooth_b = (
        np.asarray(Image.fromarray(picture).filter(blur), dtype=np.float32) for picture in (a, b)
    )
    tokens = np.abs(smooth_a - smooth_b).reshape(grid[0], a.shape[0] // grid[0], grid[1], -1)
    return np.asarray(tokens.mean(axis=(1, 3)))


def rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Return Spearman's rank correlation: 1 if `a` and `b` sort their elements in the same order.

    It is nan if one of them is constant.
    """
    from scipy.stats import rankdata

    ranks = np.stack([rankdata(a), rankdata(b)])  # ties get their mean rank
    if not ranks.std(axis=1).all():
        return float("nan")
    return float(np.corrcoef(ranks)[0, 1])


def bootstrap(
    values: Sequence[float], resamples: int = 10_000, seed: int = 0
) -> tuple[float, float, float]:
    """Return the mean of `values` and its 95% interval, from the means of seeded resamples.

    `scipy.stats.bootstrap` draws the same resamples but rounds the percentiles differently, and
    refuses a single value; the committed rows have these digits.
    """
    sample = np.asarray(values, dtype=np.float64)
    rng = np.random.default_rng(seed)
    means = sample[rng.integers(sample.size, size=(resamples, sample.size))].mean(axis=1)
    low, high = np.percentile(means, (2.5, 97.5)).tolist()
    return float(sample.mean()), low, high


def convergence_step(distances: np.ndarray, threshold: float) -> np.ndarray:
    """Return the first step from which on a token stays within `threshold` of its final state.

    Args:
        distances: distance of every step's value to the last one's, [T, ...].

    Returns:
        int [...], 0..T; T if even the last step lies beyond the threshold.
    """
    beyond = distances > threshold
    after_last_beyond = len(beyond) - np.argmax(beyond[::-1], axis=0)
    return np.where(beyond.any(axis=0), after_last_beyond, 0)
