"""Token selection with ``max_pool2d`` for the dilation and a scatter for the list."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

ITERATIONS = 16  # number of steps of the two-means cut after it starts at the mean


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
    """Compute the public function's results; `rule` is its mode, or "none" without a mask."""
    if mask is not None and rule == "replace":
        active = mask.clone()
    else:
        cut = two_means_cut(scores) if threshold is None else threshold
        judged = (scores > cut) | ~scores.isfinite()
        if previous is not None:
            judged = judged & previous
        in_reach = _dilate(judged, grid, dilation)
        share = scores.new_full((), hysteresis)  # a tensor, so that the product rounds to fp32
        least = torch.where(share > 0, share * cut, -math.inf)  # 0 * -inf would be NaN
        joins = (scores >= least) | ~scores.isfinite()
        active = judged | (in_reach & joins)
        if mask is not None:
            active = active | mask if rule == "union" else active & mask
    index, count = _compact(active, pad_to)
    return active, index, count


def two_means_cut(scores: Tensor) -> Tensor:
    """Return each image's cut ``[B, 1]``; it is -inf if the two clusters do not separate."""
    finite = scores.isfinite()
    value = torch.where(finite, scores, 0.0)
    # The first cut is below every score, so the second cut is the mean of all scores.
    cut = scores.new_full((scores.shape[0], 1), -math.inf)
    width = torch.zeros_like(cut)
    for _ in range(1 + ITERATIONS):
        num_low, num_high, sum_low, sum_high = _clusters(value, finite, cut)
        has_both = torch.minimum(num_low, num_high) > 0
        mean_low, mean_high = sum_low / num_low.clamp(min=1), sum_high / num_high.clamp(min=1)
        mean = (sum_low + sum_high) / (num_low + num_high).clamp(min=1)
        cut = torch.where(has_both, 0.5 * (mean_low + mean_high), mean)
        width = torch.where(has_both, 0.25 * (mean_high - mean_low), 0.0)
    num_low, num_high, _, _ = _clusters(value, finite, cut)
    num_near = (finite & ((value - cut).abs() <= width)).sum(1, keepdim=True)
    num_smaller = torch.minimum(num_low, num_high)
    is_separate = (num_smaller > 0) & (3 * num_near <= num_smaller)
    return torch.where(is_separate, cut, -math.inf)


def _clusters(value: Tensor, finite: Tensor, cut: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the sizes, then the sums, of the finite values up to the cut and above it.

    Each is ``[B, 1]``.
    """
    high = finite & (value > cut)
    low = finite & ~high
    num_low, num_high = low.sum(1, keepdim=True), high.sum(1, keepdim=True)
    sum_low = torch.where(low, value, 0.0).sum(1, keepdim=True)
    sum_high = torch.where(high, value, 0.0).sum(1, keepdim=True)
    return num_low, num_high, sum_low, sum_high


def _dilate(active: Tensor, grid: tuple[int, int], distance: int) -> Tensor:
    """Mark every token within `distance` of a True one, in the maximum norm."""
    if distance == 0:
        return active
    side = 2 * distance + 1
    image = active.unflatten(1, grid)[:, None].float()
    image = F.max_pool2d(image, (side, 1), stride=1, padding=(distance, 0))
    image = F.max_pool2d(image, (1, side), stride=1, padding=(0, distance))
    return image.flatten(1) > 0


def _compact(active: Tensor, pad_to: int) -> tuple[Tensor, Tensor]:
    """List the True entries of each row of `active` ``[B, N]``, and count them."""
    batch, num_tokens = active.shape
    length = -(-num_tokens // pad_to) * pad_to
    # An extra last place takes the inactive tokens and is cut off.
    place = torch.where(active, active.cumsum(1) - 1, length)
    tokens = torch.arange(num_tokens, dtype=torch.int32, device=active.device)
    tokens = tokens.expand(batch, num_tokens)
    index = tokens.new_full((batch, length + 1), -1).scatter_(1, place, tokens)
    return index[:, :length], active.sum(dim=1, dtype=torch.int32)
