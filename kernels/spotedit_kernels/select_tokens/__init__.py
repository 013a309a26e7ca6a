"""Choice of the tokens to compute at the next step, without synchronising with the device."""

from __future__ import annotations

import math
from numbers import Real
from typing import Literal

import torch
from torch import Tensor

from ..checks import check_device, check_dtype, check_rank, check_shape, check_tensors
from ..impl import Impl, choose_impl
from . import reference

__all__ = ["select_tokens"]

_OP = "select_tokens"
Mode = Literal["replace", "union", "intersect"]
_MODES = ("replace", "union", "intersect")


def select_tokens(
    scores: Tensor,
    grid: tuple[int, int],
    *,
    threshold: float | None = None,
    previous: Tensor | None = None,
    dilation: int = 0,
    hysteresis: float = 0.0,
    mask: Tensor | None = None,
    mode: Mode = "intersect",
    pad_to: int = 1,
    impl: Impl = "auto",
) -> tuple[Tensor, Tensor, Tensor]:
    """Choose the tokens to compute at the next step, as a mask and as a padded index.

    A token is judged active if its score exceeds the threshold, or is not finite, and if it was
    active before (SpotEdit, arXiv 2512.22323, section on SpotSelector). The judged set then grows
    by `dilation` tokens on every side. Last, the user's mask applies; it is never dilated.

    With `hysteresis` a token joins by dilation only if its own score is at least that share of the
    threshold, or is not finite: the lower threshold of an edge detector (Canny 1986). Hysteresis
    removes no judged token.

    Without a threshold every image gets its own: a two-means cut of its finite scores s (Ridler and
    Calvard 1978). From their mean, ``cut = (mean(s <= cut) + mean(s > cut)) / 2`` is iterated 16
    times in fp32. The cut holds if the two clusters separate: neither is empty, and the smaller one
    has at least three times as many scores as lie near the cut, within a quarter of the distance of
    the two means. (For uniform scores, half as many as the smaller cluster lie there; for normal
    ones, 0.6 times as many.) Otherwise every token is judged active. The cut assumes that the image
    has unchanged tokens: where all have changed, it would still part them in two groups.

    Args:
        scores: fp32 ``[B, N]``, row-major over the grid.
        grid: the token grid (rows, cols), N = rows * cols.
        threshold: tokens with a higher score are judged active; None = the two-means cut.
        previous: bool ``[B, N]``, the active set before; None = every token is judged afresh.
        dilation: distance on the grid in tokens, in the maximum norm: 1 reaches the eight
            neighbours.
        hysteresis: in [0, 1]; times the threshold, or times the image's cut, it is the least score
            that joins by dilation. With 0 every token in reach joins, and so it does in an image
            whose cut does not hold.
        mask: bool ``[B, N]``, True = the token may change.
        mode: "replace" takes the mask alone; "union" and "intersect" combine it with the judged
            set. Without a mask the mode does not matter.
        pad_to: the length of `index` is N rounded up to a multiple of this.
        impl: "auto", "triton" or "reference"; an explicit one never falls back.

    Returns:
        ``active``, bool ``[B, N]``; ``index``, int32 ``[B, P]``, which holds each image's active
        tokens in ascending order, then -1; ``count``, int32 ``[B]`` on the device, the number of
        active tokens.

    Raises:
        TypeError: a dtype or the type of a number is not one of those listed.
        ValueError: a shape, a device, the grid or a number does not fit; `mode` or `impl` is
            unknown.
        RuntimeError: impl="triton" was asked for and cannot run here.
    """
    _check_scores(scores, grid)
    _check_flags(scores, previous=previous, mask=mask)
    if mode not in _MODES:
        raise ValueError(f"{_OP}: mode must be one of {_MODES}, got {mode!r}.")
    threshold = _check_threshold(threshold)
    hysteresis = _check_hysteresis(hysteresis)
    _check_whole("dilation", dilation, 0)
    _check_whole("pad_to", pad_to, 1)
    dilation = min(dilation, max(grid))
    rule = "none" if mask is None else mode
    grid = (grid[0], grid[1])
    arguments = (scores, grid, threshold, previous, dilation, hysteresis, mask, rule, pad_to)
    if choose_impl(_OP, impl, scores) == "reference":
        return reference.select_tokens(*arguments)
    from . import kernel  # not above: it imports Triton

    return kernel.select_tokens(*arguments)


def _check_scores(scores: Tensor, grid: tuple[int, int]) -> None:
    check_tensors(_OP, scores=scores)
    check_rank(_OP, "scores", scores, "BN")
    check_dtype(_OP, "scores", scores, (torch.float32,), "convert it with .float()")
    if len(grid) != 2 or min(grid) < 1 or grid[0] * grid[1] != scores.shape[1]:
        raise ValueError(
            f"{_OP}: grid must be (rows, cols) with rows * cols = N = {scores.shape[1]}, "
            f"got {grid}; it is the latent size divided by the patch."
        )
    if scores.shape[0] == 0:
        raise ValueError(
            f"{_OP}: scores must hold an image, got {tuple(scores.shape)}; skip the call."
        )


def _check_flags(scores: Tensor, **flags: Tensor | None) -> None:
    for name, flag in flags.items():
        if flag is not None:
            check_tensors(_OP, **{name: flag})
            check_dtype(_OP, name, flag, (torch.bool,), "compare it with a threshold")
            check_shape(
                _OP, name, flag, tuple(scores.shape), "BN", "expand it to the scores' batch"
            )
            check_device(_OP, scores, **{name: flag})


def _check_threshold(threshold: float | None) -> float | None:
    if threshold is None:
        return None
    if isinstance(threshold, bool) or not isinstance(threshold, Real):
        raise TypeError(
            f"{_OP}: threshold must be a float or None, got {type(threshold).__name__}; "
            f"reading a tensor would synchronise with its device."
        )
    if math.isnan(threshold):
        raise ValueError(f"{_OP}: threshold must be a number, got nan; pass None to choose one.")
    return float(threshold)


def _check_hysteresis(hysteresis: float) -> float:
    if isinstance(hysteresis, bool) or not isinstance(hysteresis, Real):
        raise TypeError(
            f"{_OP}: hysteresis must be a float, got {type(hysteresis).__name__}; "
            f"reading a tensor would synchronise with its device."
        )
    if not 0 <= hysteresis <= 1:
        raise ValueError(
            f"{_OP}: hysteresis must be in [0, 1], got {hysteresis}; it is a share of the "
            f"threshold, and 0 turns it off."
        )
    return float(hysteresis)


def _check_whole(name: str, value: int, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{_OP}: {name} must be an int, got {type(value).__name__}.")
    if value < least:
        raise ValueError(f"{_OP}: {name} must be at least {least}, got {value}.")
