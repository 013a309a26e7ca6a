"""Perceptual distance of two images' feature maps, one score a token."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Real

import torch
from torch import Tensor

from ..checks import FLOATS, check_device, check_dtype, check_rank, check_shape, check_tensors
from ..impl import HAS_TRITON, Impl, choose_impl
from . import reference

if HAS_TRITON:
    from . import kernel

__all__ = ["normalise_features", "token_distance"]

_OP = "token_distance"


def token_distance(
    x_features: Sequence[Tensor],
    y_features: Sequence[Tensor],
    grid: tuple[int, int],
    *,
    patch: int = 2,
    weights: Sequence[float] | None = None,
    y_normalised: bool = False,
    impl: Impl = "auto",
) -> Tensor:
    """LPIPS-like distance between two images, pooled to the token grid.

    Per layer l: normalise each position's channel vector (as ``F.normalize``, eps 1e-12), take
    the squared L2 distance over the channels, resize that map to (rows*patch, cols*patch)
    (bilinear, align_corners=False). Then sum_l(w_l d_l) / sum_l(w_l), average-pooled by `patch`.
    This is the token score of SpotEdit's selector (arXiv 2512.22323, section on SpotSelector);
    the per-layer distance is that of LPIPS, arXiv 1801.03924, eq. 1, without learned weights.
    A score is in [0, 4]: 0 for the same direction, 2 for orthogonal, 4 for opposite features.

    Args:
        x_features: maps ``[B, C_l, H_l, W_l]``, one a layer, in any memory format; fp16, bf16,
            fp32 or fp64. Arithmetic is in fp32 (fp64 for fp64 maps).
        y_features: as many maps ``[B, C_l, H_l, W_l]`` or ``[1, C_l, H_l, W_l]`` (one reference
            for the batch); their dtype may differ from x's.
        grid: the token grid (rows, cols).
        patch: latent cells a token along each side.
        weights: one non-negative number a layer; default: all equal.
        y_normalised: y's channel vectors have unit length already (`normalise_features`).
        impl: "auto", "triton" or "reference"; an explicit one never falls back. fp64 maps, x's or
            y's, need the reference.

    Returns:
        fp32 ``[B, rows*cols]``, row-major over the grid.

    Raises:
        TypeError: a dtype is not of those listed, or a sequence is not one.
        ValueError: shapes, numbers of layers, devices, the grid or the weights do not fit; `impl`
            is unknown.
        RuntimeError: impl="triton" was asked for and cannot run here.
    """
    x_features, y_features = _maps("x_features", x_features), _maps("y_features", y_features)
    _check_maps(x_features, y_features)
    rows, cols = _check_grid(grid, patch)
    shares = _shares(weights, len(x_features))
    widest = (x for x in (*x_features, *y_features) if x.dtype == torch.float64)
    chosen = choose_impl(_OP, impl, next(widest, x_features[0]))
    compute = kernel.token_distance if chosen == "triton" else reference.token_distance
    return compute(x_features, y_features, (rows, cols), patch, shares, y_normalised)


def normalise_features(features: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Unit channel vectors of maps ``[B, C_l, H_l, W_l]``, for ``y_normalised=True``.

    As ``F.normalize(map, dim=1, eps=1e-12)``, in fp32 (fp64 for fp64 maps): a reference that is
    compared many times is normalised once.
    """
    return tuple(reference.normalise(x) for x in _maps("features", features))


def _maps(name: str, features: object) -> tuple[Tensor, ...]:
    if isinstance(features, Tensor) or not isinstance(features, Sequence):
        raise TypeError(
            f"{_OP}: {name} must be a sequence of maps [B, C, H, W], "
            f"got {type(features).__name__}; wrap a single map in a list."
        )
    for i, x in enumerate(features):
        check_tensors(_OP, **{f"{name}[{i}]": x})
        check_rank(_OP, f"{name}[{i}]", x, "BCHW")
        check_dtype(_OP, f"{name}[{i}]", x, FLOATS, "convert it with .float()")
        if x.numel() == 0:
            raise ValueError(
                f"{_OP}: {name}[{i}] must not be empty, got {tuple(x.shape)}; drop that layer."
            )
    if len(features) == 0:
        raise ValueError(f"{_OP}: {name} must hold at least one map, got none; pass a layer.")
    return tuple(features)


def _check_maps(x_features: tuple[Tensor, ...], y_features: tuple[Tensor, ...]) -> None:
    if len(x_features) != len(y_features):
        raise ValueError(
            f"{_OP}: x_features and y_features must have as many layers, got {len(x_features)} "
            f"and {len(y_features)}; take the same layers of both."
        )
    batch = x_features[0].shape[0]
    for i, (x, y) in enumerate(zip(x_features, y_features, strict=True)):
        check_shape(
            _OP,
            f"x_features[{i}]",
            x,
            (batch, *x.shape[1:]),
            "BCHW",
            "every layer has the batch of the first",
        )
        y_batch = 1 if y.shape[0] == 1 else batch
        check_shape(
            _OP,
            f"y_features[{i}]",
            y,
            (y_batch, *x.shape[1:]),
            "BCHW",
            f"it matches x_features[{i}]; its batch may be 1",
        )
        check_device(_OP, x_features[0], **{f"x_features[{i}]": x, f"y_features[{i}]": y})


def _check_grid(grid: tuple[int, int], patch: int) -> tuple[int, int]:
    if len(grid) != 2 or min(grid) < 1:
        raise ValueError(
            f"{_OP}: grid must be (rows, cols) of the token grid, both at least 1, got {grid}; "
            f"it is the latent size divided by patch."
        )
    if patch < 1:
        raise ValueError(f"{_OP}: patch must be at least 1, got {patch}; FLUX packs 2 x 2.")
    return grid[0], grid[1]


def _shares(weights: Sequence[float] | None, layers: int) -> tuple[float, ...]:
    """The layers' weights divided by their sum."""
    if weights is None:
        return (1 / layers,) * layers
    if isinstance(weights, Tensor) or not all(isinstance(w, Real) for w in weights):
        raise TypeError(
            f"{_OP}: weights must be a sequence of floats, got {type(weights).__name__}; "
            f"a tensor would have to be read from its device: pass weights.tolist() once."
        )
    weights = tuple(float(w) for w in weights)
    total = sum(weights)
    if len(weights) != layers or min(weights) < 0 or not 0 < total < math.inf:
        raise ValueError(
            f"{_OP}: weights must be {layers} non-negative numbers, one a layer, with a positive "
            f"finite sum, got {weights}; leave them out for equal weights."
        )
    return tuple(w / total for w in weights)
