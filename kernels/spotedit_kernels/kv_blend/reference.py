"""The blend of K and V: ``lerp`` over all rows, and only the indexed ones are written."""

from __future__ import annotations

import torch
from torch import Tensor

from ..checks import compute_dtype
from ..rows import row_mask


def kv_blend(
    k_out: Tensor,
    v_out: Tensor,
    k_cached: Tensor,
    v_cached: Tensor,
    k_ref: Tensor,
    v_ref: Tensor,
    index: Tensor,
    weight: float | Tensor,
) -> None:
    """Write ``weight * cached + (1 - weight) * ref`` to the indexed rows of `k_out` and `v_out`."""
    for out, cached, ref in ((k_out, k_cached, k_ref), (v_out, v_cached, v_ref)):
        wide = compute_dtype(out.dtype)
        num_rows = min(out.shape[1], ref.shape[1])  # every index is below both
        out, cached, ref = out[:, :num_rows], cached[:, :num_rows], ref[:, :num_rows]
        w = weight.to(wide) if isinstance(weight, Tensor) else weight
        blended = torch.lerp(ref.to(wide), cached.to(wide), w).to(out.dtype)
        mask = row_mask(index, num_rows)[..., None, None]
        out.copy_(torch.where(mask, blended, out))
