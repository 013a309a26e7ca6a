"""Latent distance with one PyTorch operation after the other."""

from __future__ import annotations

import torch
from torch import Tensor


def latent_distance(x: Tensor, y: Tensor, velocity: Tensor | None, sigma: float | Tensor) -> Tensor:
    """Return the scores; `sigma` is not used where `velocity` is None."""
    given = (x, y) if velocity is None else (x, y, velocity)
    fp64 = any(latents.dtype == torch.float64 for latents in given)
    wide = torch.float64 if fp64 else torch.float32
    clean = x.to(wide)
    if velocity is not None:
        factor = sigma.to(wide) if isinstance(sigma, Tensor) else sigma
        clean = clean - factor * velocity.to(wide)
    return (clean - y.to(wide)).square().mean(dim=-1).float()
