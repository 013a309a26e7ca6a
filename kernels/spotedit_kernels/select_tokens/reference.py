"""The active set with ``max_pool2d`` for dilation and a scatter for compaction."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

ITERATIONS = 16  # of the two-means cut, after its start at the mean


def select_tokens(
    scores: Tensor,
    grid: tuple[int, int],
    threshold: float | None,
    previous: Tensor | None,
    dilation: int,
    hysteresis: float,
    mask: Tensor | None,
    rule: str,
    pad_to: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """`rule`: how the mask applies, or "none"."""
    if mask is not None and rule == "replace":
        active = mask.clone()
    else:
        cut = two_means_cut(scores) if threshold is None else threshold
        judged = (scores > cut) | ~scores.isfinite()
        if previous is not None:
            judged = judged & previous
        active = _dilate(judged, grid, dilation)
        share = scores.new_full((), hysteresis)  # so that the product is rounded as the kernel's
        least = torch.where(share > 0, share * cut, -math.inf)  # 0 * -inf would be NaN
        active = judged | (active & ((scores >= least) | ~scores.isfinite()))
        if mask is not None:
            active = active | mask if rule == "union" else active & mask
    return active, *_compact(active, pad_to)


def two_means_cut(scores: Tensor) -> Tensor:
    """The cut ``[B, 1]`` of each image; -inf where its two clusters do not separate."""
    finite = scores.isfinite()
    value = torch.where(finite, scores, 0.0)
    cut = scores.new_full((scores.shape[0], 1), -math.inf)  # all above: the next cut is the mean
    width = torch.zeros_like(cut)
    for _ in range(1 + ITERATIONS):
        n_low, n_high, low, high = _clusters(value, finite, cut)
        both = torch.minimum(n_low, n_high) > 0
        mean_low, mean_high = low / n_low.clamp(min=1), high / n_high.clamp(min=1)
        mean = (low + high) / (n_low + n_high).clamp(min=1)
        cut = torch.where(both, 0.5 * (mean_low + mean_high), mean)
        width = torch.where(both, 0.25 * (mean_high - mean_low), 0.0)
    n_low, n_high, _, _ = _clusters(value, finite, cut)
    near = (finite & ((value - cut).abs() <= width)).sum(1, keepdim=True)
    smaller = torch.minimum(n_low, n_high)
    return torch.where((smaller > 0) & (3 * near <= smaller), cut, -math.inf)


def _clusters(value: Tensor, finite: Tensor, cut: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Sizes and sums ``[B, 1]`` of the finite values up to the cut and above it."""
    above = finite & (value > cut)
    below = finite & ~above
    n_low, n_high = (x.sum(1, keepdim=True) for x in (below, above))
    low, high = (torch.where(x, value, 0.0).sum(1, keepdim=True) for x in (below, above))
    return n_low, n_high, low, high


def _dilate(active: Tensor, grid: tuple[int, int], tokens: int) -> Tensor:
    if tokens == 0:
        return active
    image = active.unflatten(1, grid)[:, None].float()
    for size, padding in (((2 * tokens + 1, 1), (tokens, 0)), ((1, 2 * tokens + 1), (0, tokens))):
        image = F.max_pool2d(image, size, stride=1, padding=padding)
    return image.flatten(1) > 0


def _compact(active: Tensor, pad_to: int) -> tuple[Tensor, Tensor]:
    """Index of the True entries of each row of `active` ``[B, N]``, padded, and their number."""
    batch, n = active.shape
    length = -(-n // pad_to) * pad_to
    place = torch.where(active, active.cumsum(1) - 1, length)  # the last slot takes the others
    tokens = torch.arange(n, dtype=torch.int32, device=active.device).expand(batch, n)
    index = tokens.new_full((batch, length + 1), -1).scatter_(1, place, tokens)
    return index[:, :length], active.sum(dim=1, dtype=torch.int32)
