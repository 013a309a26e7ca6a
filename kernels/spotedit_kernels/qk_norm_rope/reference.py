"""Normalisation and rotation with ``rms_norm`` and a complex product, then row copies."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..checks import compute_dtype
from ..rows import scatter_rows

Weights = tuple[Tensor | None, Tensor | None]  # of the prompt rows, of the others


def qk_norm_rope(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    slots: Tensor | None,
    cos: Tensor,
    sin: Tensor,
    text_len: int,
    q_weights: Weights,
    k_weights: Weights,
    eps: float,
    interleaved: bool,
    ref: tuple[Tensor, Tensor, Tensor] | None,  # k_ref, cos_ref, sin_ref
) -> Tensor:
    cos, sin = _table_rows(cos, slots), _table_rows(sin, slots)
    k = _normalise(k, text_len, k_weights, eps)
    if ref is not None:
        k_ref, cos_ref, sin_ref = ref
        start = k_cache.shape[1] - k_ref.shape[1]
        _write_ref(k_ref, k, slots, start, cos_ref, sin_ref, interleaved)
    k = _rotate(k, cos, sin, interleaved)
    if slots is None:
        k_cache.copy_(k)
        v_cache.copy_(v)
    else:
        scatter_rows(slots, (k_cache, k), (v_cache, v))
    return _rotate(_normalise(q, text_len, q_weights, eps), cos, sin, interleaved)


def _write_ref(
    k_ref: Tensor,
    k: Tensor,
    slots: Tensor | None,
    start: int,
    cos_ref: Tensor,
    sin_ref: Tensor,
    interleaved: bool,
) -> None:
    """Rotate the normalised keys `k` whose slots are `start` or more into `k_ref`."""
    if k_ref.shape[1] == 0:
        return
    if slots is None:
        k_ref.copy_(_rotate(k[:, start:], cos_ref[None], sin_ref[None], interleaved))
        return
    index = (slots - start).clamp(min=-1)
    cos_rows, sin_rows = _table_rows(cos_ref, index), _table_rows(sin_ref, index)
    scatter_rows(index, (k_ref, _rotate(k, cos_rows, sin_rows, interleaved)))


def _table_rows(table: Tensor, slots: Tensor | None) -> Tensor:
    """The table of the M rows, ``[1 or B, M, D]``."""
    if table.ndim == 3:
        return table
    if slots is None:
        return table[None]
    rows = table.index_select(0, slots.clamp(min=0).flatten()).unflatten(0, slots.shape)
    return rows if slots.ndim == 2 else rows[None]


def _normalise(x: Tensor, text_len: int, weights: Weights, eps: float) -> Tensor:
    text, image = weights
    if text is image or text_len == 0:
        return _rms_norm(x, image, eps)
    if text_len == x.shape[1]:
        return _rms_norm(x, text, eps)
    parts = _rms_norm(x[:, :text_len], text, eps), _rms_norm(x[:, text_len:], image, eps)
    return torch.cat(parts, 1)


def _rms_norm(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    if weight is None or weight.dtype == x.dtype:
        return F.rms_norm(x, x.shape[-1:], weight, eps)
    wide = compute_dtype(x.dtype)
    return F.rms_norm(x.to(wide), x.shape[-1:], weight.to(wide), eps).to(x.dtype)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    """Rotate the pairs of `x` ``[B, M, H, D]`` by the angles of ``[1 or B, M, D]`` tables."""
    wide = compute_dtype(x.dtype)
    cos, sin = cos.to(wide)[:, :, None], sin.to(wide)[:, :, None]
    if interleaved:
        turn = torch.complex(cos[..., ::2].contiguous(), sin[..., ::2].contiguous())
        pairs = torch.view_as_complex(x.to(wide).contiguous().unflatten(-1, (-1, 2)))
        return torch.view_as_real(pairs * turn).flatten(-2).to(x.dtype)
    half = x.shape[-1] // 2
    cos, sin = cos[..., :half], sin[..., :half]
    a, b = x.to(wide).split(half, -1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1).to(x.dtype)
