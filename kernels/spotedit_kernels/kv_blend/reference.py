"""The blend of K and V rows with gather, ``lerp`` and scatter."""

from __future__ import annotations

import torch
from torch import Tensor

from ..checks import compute_dtype
from ..rows import gather_rows, scatter_rows


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
    if index.shape[-1] == 0:
        return
    for out, cached, ref in ((k_out, k_cached, k_ref), (v_out, v_cached, v_ref)):
        wide = compute_dtype(out.dtype)
        ref_rows = gather_rows(ref, index).to(wide)  # [B, M, H, D]
        cached_rows = gather_rows(cached, index).to(wide)
        w = weight.to(wide) if isinstance(weight, Tensor) else weight
        scatter_rows(out, index, torch.lerp(ref_rows, cached_rows, w).to(out.dtype))
