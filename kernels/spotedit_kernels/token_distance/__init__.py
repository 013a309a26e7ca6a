"""Perceptual distance of two images' feature maps, one score per token."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Real

import torch
from torch import Tensor

from ..checks import FLOATS, check_device, check_dtype, check_rank, check_shape, check_tensors
from ..impl import Impl, choose_impl
from . import reference

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
    """Return an LPIPS-like distance between two images, pooled to the token grid.

    For each layer l: normalise each position's channel vector (as ``F.normalize``, eps 1e-12), take
    the squared L2 distance over the channels, and resize that map d_l to (rows*patch, cols*patch)
    (bilinear, align_corners=False). Then average-pool sum_l(w_l d_l) / sum_l(w_l) by `patch`.

    This is the token score of SpotEdit's selector (arXiv 2512.22323, section on SpotSelector). The
    distance of a layer is that of LPIPS (arXiv 1801.03924, eq. 1) without learned weights.
    A score is in [0, 4]: 0 for the same direction, 2 for orthogonal, 4 for opposite features.

    Args:
        x_features: maps ``[B, C_l, H_l, W_l]``, one per layer, in any memory format; fp16, bf16,
            fp32 or fp64. Arithmetic is in fp32 (fp64 for fp64 maps).
        y_features: the same number of maps, ``[B, C_l, H_l, W_l]`` or ``[1, C_l, H_l, W_l]`` (one
            reference for the batch); their dtype may differ from x's.
        grid: the token grid (rows, cols).
        patch: the number of latent cells along each side of a token.
        weights: one non-negative number per layer; by default all are equal.
        y_normalised: whether y's channel vectors already have unit length (`normalise_features`).
        impl: "auto", "triton" or "reference"; an explicit one never falls back. fp64 maps, in x or
            in y, need the reference.

    Returns:
        fp32 ``[B, rows*cols]``, row-major over the grid.

    Raises:
        TypeError: a dtype is not one of those listed, or an argument is not a sequence.
        ValueError: a shape, a number of layers, a device, the grid or the weights do not fit;
            `impl` is unknown.
        RuntimeError: impl="triton" was asked for and cannot run here.
    """
    x_features, y_features = _maps("x_features", x_features), _maps("y_features", y_features)
    _check_maps(x_features, y_features)
    grid = _check_grid(grid, patch)
    shares = _shares(weights, len(x_features))
    # If any map is in fp64, so is its arithmetic, and the kernels refuse it.
    fp64_maps = (x for x in (*x_features, *y_features) if x.dtype == torch.float64)
    widest = next(fp64_maps, x_features[0])
    arguments = (x_features, y_features, grid, patch, shares, y_normalised)
    if choose_impl(_OP, impl, widest) == "reference":
        return reference.token_distance(*arguments)
    from . import kernel  # not above: it imports Triton

    return kernel.token_distance(*arguments)


def normalise_features(features: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Scale the channel vectors of maps ``[B, C_l, H_l, W_l]`` to unit length.

    The result is ``F.normalize(map, dim=1, eps=1e-12)`` in fp32 (fp64 for fp64 maps). Pass it as
    `y_features` with ``y_normalised=True``, to normalise a reference once for many comparisons.
    """
    return tuple(reference.normalise(x) for x in _maps("features", features))


def _maps(name: str, features: object) -> tuple[Tensor, ...]:
    """Return the maps as a tuple, after checking each of them by itself."""
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
    """Check that the maps' numbers, shapes and devices fit together."""
    if len(x_features) != len(y_features):
        raise ValueError(
            f"{_OP}: x_features and y_features must have the same number of layers, got "
            f"{len(x_features)} and {len(y_features)}; take the same layers of both."
        )
    batch = x_features[0].shape[0]
    for i, (x, y) in enumerate(zip(x_features, y_features, strict=True)):
        x_name, y_name = f"x_features[{i}]", f"y_features[{i}]"
        hint = "every layer must have the first layer's batch"
        check_shape(_OP, x_name, x, (batch, *x.shape[1:]), "BCHW", hint)
        hint = f"it must match {x_name}, but its batch may be 1"
        y_batch = 1 if y.shape[0] == 1 else batch
        check_shape(_OP, y_name, y, (y_batch, *x.shape[1:]), "BCHW", hint)
        check_device(_OP, x_features[0], **{x_name: x, y_name: y})


def _check_grid(grid: tuple[int, int], patch: int) -> tuple[int, int]:
    """Check the grid and the patch, and return the grid as a tuple."""
    if len(grid) != 2 or min(grid) < 1:
        raise ValueError(
            f"{_OP}: grid must be (rows, cols) of the token grid, both at least 1, got {grid}; "
            f"it is the latent size divided by patch."
        )
    if patch < 1:
        raise ValueError(f"{_OP}: patch must be at least 1, got {patch}; FLUX packs 2 x 2.")
    return grid[0], grid[1]


def _shares(weights: Sequence[float] | None, num_layers: int) -> tuple[float, ...]:
    """Return the layers' weights, divided by their sum."""
    if weights is None:
        return (1 / num_layers,) * num_layers
    if isinstance(weights, Tensor) or not all(isinstance(w, Real) for w in weights):
        raise TypeError(
            f"{_OP}: weights must be a sequence of floats, got {type(weights).__name__}; "
            f"reading a tensor would synchronise with its device: pass weights.tolist() once."
        )
    weights = tuple(float(w) for w in weights)
    total = sum(weights)
    if len(weights) != num_layers or min(weights) < 0 or not 0 < total < math.inf:
        raise ValueError(
            f"{_OP}: weights must be {num_layers} non-negative numbers, one per layer, with a "
            f"positive finite sum, got {weights}; leave them out for equal weights."
        )
    return tuple(w / total for w in weights)
