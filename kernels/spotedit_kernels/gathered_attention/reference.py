"""Gathered attention with ``scaled_dot_product_attention``; "auto" takes it on a CPU."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..checks import compute_dtype
from ..rows import gather_rows, scatter_rows


def gathered_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    index: Tensor | None,
    key_mask: Tensor | None,
    kv_scales: tuple[Tensor, Tensor] | None,
    scale: float | None,
    out: Tensor | None,
) -> Tensor:
    """Compute the public function's result from arguments that were checked."""
    queries = q if index is None else gather_rows(q, index)  # [B, M, H, D]
    if kv_scales is not None:
        k_scale, v_scale = kv_scales
        k, v = _dequantise(k, k_scale, q.dtype), _dequantise(v, v_scale, q.dtype)
    result = _attend(queries, k, v, key_mask, scale)
    if index is None:
        return result if out is None else out.copy_(result)
    if out is None:
        out = q.new_zeros(q.shape)
    scatter_rows(index, (out, result))
    return out


def _attend(
    q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None, scale: float | None
) -> Tensor:
    mask = None if key_mask is None else key_mask[:, None, None, :]
    result = F.scaled_dot_product_attention(
        q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), attn_mask=mask, scale=scale
    ).transpose(1, 2)
    if key_mask is None:
        return result
    # SDPA does not document its result for a batch row without keys; ours is 0.
    no_keys = ~key_mask.any(1)
    return result.masked_fill(no_keys[:, None, None, None], 0)


def _dequantise(x: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    wide = compute_dtype(dtype)
    return (x.to(wide) * scale.to(wide)[..., None]).to(dtype)  # [B, S, H, D]
