"""Gathered attention on top of ``scaled_dot_product_attention``; the production path on a CPU."""

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
    rows = q if index is None else gather_rows(q, index)  # [B, M, H, D]
    if kv_scales is not None:
        k, v = (_dequantise(x, s, q.dtype) for x, s in zip((k, v), kv_scales, strict=True))
    result = _attend(rows, k, v, key_mask, scale)
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
    empty = ~key_mask.any(1)  # what SDPA returns there is not documented
    return result.masked_fill(empty[:, None, None, None], 0)


def _dequantise(x: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    wide = compute_dtype(dtype)
    return (x.to(wide) * scale.to(wide)[..., None]).to(dtype)  # [B, S, H, D]
