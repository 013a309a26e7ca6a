"""The blend of K and V with ``lerp`` over all rows, kept on the indexed ones."""

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
    for out, cached, ref in ((k_out, k_cached, k_ref), (v_out, v_cached, v_ref)):
        wide = compute_dtype(out.dtype)
        rows = min(out.shape[1], ref.shape[1])  # the index stays below both
        out, cached, ref = (x[:, :rows] for x in (out, cached, ref))
        w = weight.to(wide) if isinstance(weight, Tensor) else weight
        blended = torch.lerp(ref.to(wide), cached.to(wide), w).to(out.dtype)
        out.copy_(torch.where(row_mask(index, rows)[..., None, None], blended, out))
