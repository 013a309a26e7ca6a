"""Token distance: normalise, subtract, square, resize with ``interpolate``, then pool."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..checks import compute_dtype

EPS = 1e-12  # least length to divide by, as in F.normalize: a zero vector stays zero


def token_distance(
    x_features: tuple[Tensor, ...],
    y_features: tuple[Tensor, ...],
    grid: tuple[int, int],
    patch: int,
    shares: tuple[float, ...],
    y_normalised: bool,
) -> Tensor:
    """Compute the public function's scores; `shares` are its weights divided by their sum."""
    size = (grid[0] * patch, grid[1] * patch)
    total = x_features[0].new_zeros((), dtype=torch.float32)
    for x, y, share in zip(x_features, y_features, shares, strict=True):
        distance = _squared_distance(x, y, y_normalised)[:, None]
        if tuple(distance.shape[2:]) != size:
            distance = F.interpolate(distance, size=size, mode="bilinear", align_corners=False)
        total = total + share * distance
    return F.avg_pool2d(total, patch).flatten(1).float()  # [B, rows*cols]


def _squared_distance(x: Tensor, y: Tensor, y_normalised: bool) -> Tensor:
    """Return ``|x/|x| - y/|y||^2``, ``[B, H, W]``."""
    x = x.to(compute_dtype(x.dtype))
    y = y.to(compute_dtype(y.dtype)) if y_normalised else normalise(y)
    length = torch.linalg.vecdot(x, x, dim=1).sqrt().clamp(min=EPS)
    difference = x / length[:, None] - y
    return torch.linalg.vecdot(difference, difference, dim=1)


def normalise(x: Tensor) -> Tensor:
    """Return `x` ``[B, C, H, W]`` with unit channel vectors, in fp32, or fp64 for an fp64 map."""
    return F.normalize(x.to(compute_dtype(x.dtype)), dim=1, eps=EPS)
