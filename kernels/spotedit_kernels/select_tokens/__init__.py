"""The active set of the next step, and its list of tokens, without asking the host."""

from __future__ import annotations

import math
from numbers import Real
from typing import Literal

import torch
from torch import Tensor

from ..checks import check_device, check_dtype, check_rank, check_shape, check_tensors
from ..impl import HAS_TRITON, Impl, choose_impl
from . import reference

if HAS_TRITON:
    from . import kernel

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
    """Which tokens to compute at the next step, as a mask and as a padded index.

    A token is judged active if its score exceeds the threshold, or is not finite, and it was
    active before (SpotEdit, arXiv 2512.22323, section on SpotSelector). The judged set grows by
    `dilation` tokens on every side; then the user's mask applies, which is never dilated.

    With `hysteresis` a token joins by dilation only if its own score is at least that share of the
    threshold, or is not finite: the lower threshold of an edge detector (Canny 1986). No judged
    token is removed.

    Without a threshold every image gets its own: a two-means cut of its finite scores s, found by
    iteration from their mean (Ridler and Calvard 1978), 16 times, in fp32:
    ``cut = (mean(s <= cut) + mean(s > cut)) / 2``. It holds if the two clusters separate: neither
    is empty, and the scores within a quarter of the distance of their means from the cut are at
    most a third as many as the smaller cluster (a half for uniform scores, 0.6 for normal ones).
    Otherwise every token is judged active. The cut assumes that the image has unchanged tokens:
    where all have changed, two groups of scores would still be parted.

    Args:
        scores: fp32 ``[B, N]``, row-major over the grid.
        grid: the token grid (rows, cols), N = rows * cols.
        threshold: tokens above it are judged active; None: the two-means cut.
        previous: bool ``[B, N]``, the active set before; None: every token is judged afresh.
        dilation: tokens on the grid, in the maximum norm: 1 reaches the eight neighbours.
        hysteresis: in [0, 1], times the threshold, or times the image's two-means cut: the least
            score that joins by dilation. 0 lets every token in reach join, as a cut that does not
            hold does.
        mask: bool ``[B, N]``, what may change.
        mode: "replace": the mask alone; "union", "intersect": of the mask and the judged set.
            Without a mask all mean the judged set.
        pad_to: the index' length is N rounded up to a multiple of it.
        impl: "auto", "triton" or "reference"; an explicit one never falls back.

    Returns:
        ``active``, bool ``[B, N]``; ``index``, int32 ``[B, P]``: each image's active tokens,
        ascending, then -1; ``count``, int32 ``[B]`` on the device: how many of them are real.

    Raises:
        TypeError: a dtype or the type of a number is not of those listed.
        ValueError: a shape, a device, the grid or a number does not fit; `mode` or `impl` is
            unknown.
        RuntimeError: impl="triton" was asked for and cannot run here.
    """
    _check_scores(scores, grid)
    _check_flags(scores, previous=previous, mask=mask)
    if mode not in _MODES:
        raise ValueError(f"{_OP}: mode must be one of {_MODES}, got {mode!r}.")
    cut = _threshold(threshold)
    hysteresis = _hysteresis(hysteresis)
    _check_whole("dilation", dilation, 0)
    _check_whole("pad_to", pad_to, 1)
    dilation = min(dilation, max(grid))
    rule = "none" if mask is None else mode
    compute = kernel if choose_impl(_OP, impl, scores) == "triton" else reference
    return compute.select_tokens(
        scores, (grid[0], grid[1]), cut, previous, dilation, hysteresis, mask, rule, pad_to
    )


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
        raise ValueError(f"{_OP}: scores must hold an image, got {tuple(scores.shape)}.")


def _check_flags(scores: Tensor, **flags: Tensor | None) -> None:
    for name, flag in flags.items():
        if flag is not None:
            check_tensors(_OP, **{name: flag})
            check_dtype(_OP, name, flag, (torch.bool,), "compare it with a number")
            check_shape(
                _OP, name, flag, tuple(scores.shape), "BN", "expand it to the scores' batch"
            )
            check_device(_OP, scores, **{name: flag})


def _threshold(threshold: float | None) -> float | None:
    if threshold is None:
        return None
    if isinstance(threshold, bool) or not isinstance(threshold, Real):
        raise TypeError(
            f"{_OP}: threshold must be a float or None, got {type(threshold).__name__}; "
            f"a tensor would have to be read from its device."
        )
    if math.isnan(threshold):
        raise ValueError(f"{_OP}: threshold must be a number, got nan; None chooses one.")
    return float(threshold)


def _hysteresis(hysteresis: float) -> float:
    if isinstance(hysteresis, bool) or not isinstance(hysteresis, Real):
        raise TypeError(
            f"{_OP}: hysteresis must be a float, got {type(hysteresis).__name__}; "
            f"a tensor would have to be read from its device."
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
