"""Latent distance, as a sequence of PyTorch operations."""

from __future__ import annotations

import torch
from torch import Tensor


def latent_distance(x: Tensor, y: Tensor, velocity: Tensor | None, sigma: float | Tensor) -> Tensor:
    """Compute the public function's scores; `sigma` is ignored if `velocity` is None."""
    latents = (x, y) if velocity is None else (x, y, velocity)
    has_fp64 = any(each.dtype == torch.float64 for each in latents)
    wide = torch.float64 if has_fp64 else torch.float32
    clean = x.to(wide)
    if velocity is not None:
        factor = sigma.to(wide) if isinstance(sigma, Tensor) else sigma
        clean = clean - factor * velocity.to(wide)
    return (clean - y.to(wide)).square().mean(dim=-1).float()
