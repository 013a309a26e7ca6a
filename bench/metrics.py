"""Statistics of judgements and edits, in plain numpy. Masks are bool [H, W]."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageFilter

EDITED_SHARE = 0.1  # of a token's pixels: from here on the edit truly touches the token
VISIBLE = 10.0  # of 255: mean `difference` from which on a token's pixels visibly differ
_BLUR = 2.0  # px, radius: compression noise is finer


def changed_share(mask: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """Share of the pixels in `mask` for every token of the grid (rows, cols), 0..1."""
    rows, cols = grid
    height, width = mask.shape[0] // rows, mask.shape[1] // cols
    return mask.reshape(rows, height, cols, width).mean(axis=(1, 3))


def auc(scores: np.ndarray, truth: np.ndarray) -> float:
    """Chance that a True element scores above a False one, ties counting half (Mann-Whitney U).

    nan if `truth` has elements of one kind only.
    """
    scores, truth = np.ravel(scores), np.ravel(truth)
    positive = int(truth.sum())
    if not 0 < positive < truth.size:
        return float("nan")
    wins = _ranks(scores)[truth].sum() - positive * (positive + 1) / 2
    return float(wins / (positive * (truth.size - positive)))


def difference(a: np.ndarray, b: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """Mean absolute difference of the blurred pictures by token: [rows, cols], 0..255.

    `a` and `b` are uint8 [H, W, 3], whose sides are multiples of the grid's.
    """
    blur = ImageFilter.GaussianBlur(_BLUR)
    smooth, other = (
        np.asarray(Image.fromarray(picture).filter(blur), dtype=np.float32) for picture in (a, b)
    )
    tokens = np.abs(smooth - other).reshape(grid[0], a.shape[0] // grid[0], grid[1], -1)
    return np.asarray(tokens.mean(axis=(1, 3)))


def rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's: 1 if `a` and `b` sort their elements alike, nan if one of them is constant."""
    ranks = np.stack([_ranks(np.ravel(a)), _ranks(np.ravel(b))])
    if not ranks.std(axis=1).all():
        return float("nan")
    return float(np.corrcoef(ranks)[0, 1])


def _ranks(values: np.ndarray) -> np.ndarray:
    """From 1; ties share their mean."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[place]


def bootstrap(
    values: Sequence[float], resamples: int = 10_000, seed: int = 0
) -> tuple[float, float, float]:
    """Mean of `values` and its 95% interval (percentiles of the means of seeded resamples)."""
    sample = np.asarray(values, dtype=np.float64)
    rng = np.random.default_rng(seed)
    means = sample[rng.integers(sample.size, size=(resamples, sample.size))].mean(axis=1)
    low, high = np.percentile(means, (2.5, 97.5)).tolist()
    return float(sample.mean()), low, high


def convergence_step(distances: np.ndarray, threshold: float) -> np.ndarray:
    """First step from which on a token stays within `threshold` of where it ends.

    Args:
        distances: [T, ...], of every step's value to the last one's.

    Returns:
        int [...], 0..T; T where even the last step lies beyond.
    """
    beyond = distances > threshold
    last = len(beyond) - np.argmax(beyond[::-1], axis=0)  # 1 + the last step beyond
    return np.where(beyond.any(axis=0), last, 0)
