"""Normalise with ``rms_norm``, rotate with a complex product, then copy rows to the caches."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..checks import compute_dtype
from ..rows import scatter_rows


class Weights(NamedTuple):
    """The norm's weights ``[D]`` for the prompt rows and for all other rows; None = no weight."""

    text: Tensor | None
    image: Tensor | None


class ConditionKeys(NamedTuple):
    """The tensor that receives the keys of the last C rows, ``[B, C, H, D]``; tables ``[C, D]``."""

    k_ref: Tensor
    cos_ref: Tensor
    sin_ref: Tensor


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
    condition: ConditionKeys | None,
) -> Tensor:
    """Compute the public function's result from arguments that were checked."""
    cos, sin = _table_rows(cos, slots), _table_rows(sin, slots)
    k = _normalise(k, text_len, k_weights, eps)
    if condition is not None:
        start = k_cache.shape[1] - condition.k_ref.shape[1]
        _write_ref(condition, k, slots, start, interleaved)
    k = _rotate(k, cos, sin, interleaved)
    if slots is None:
        k_cache.copy_(k)
        v_cache.copy_(v)
    else:
        scatter_rows(slots, (k_cache, k), (v_cache, v))
    return _rotate(_normalise(q, text_len, q_weights, eps), cos, sin, interleaved)


def _write_ref(
    condition: ConditionKeys, k: Tensor, slots: Tensor | None, start: int, interleaved: bool
) -> None:
    """Rotate the normalised keys `k` with slots from `start` on, and write them to `k_ref`."""
    k_ref, cos_ref, sin_ref = condition
    if k_ref.shape[1] == 0:
        return
    if slots is None:
        k_ref.copy_(_rotate(k[:, start:], cos_ref[None], sin_ref[None], interleaved))
        return
    index = (slots - start).clamp(min=-1)
    cos_rows, sin_rows = _table_rows(cos_ref, index), _table_rows(sin_ref, index)
    scatter_rows(index, (k_ref, _rotate(k, cos_rows, sin_rows, interleaved)))


def _table_rows(table: Tensor, slots: Tensor | None) -> Tensor:
    """Return the table of the M rows, ``[1 or B, M, D]``."""
    if table.ndim == 3:
        return table
    if slots is None:
        return table[None]
    rows = table.index_select(0, slots.clamp(min=0).flatten()).unflatten(0, slots.shape)
    return rows if slots.ndim == 2 else rows[None]


def _normalise(x: Tensor, text_len: int, weights: Weights, eps: float) -> Tensor:
    """Apply RMSNorm to `x` ``[B, M, H, D]``, with the text weights in its first `text_len` rows."""
    if weights.text is weights.image or text_len == 0:
        return _rms_norm(x, weights.image, eps)
    if text_len == x.shape[1]:
        return _rms_norm(x, weights.text, eps)
    text = _rms_norm(x[:, :text_len], weights.text, eps)
    image = _rms_norm(x[:, text_len:], weights.image, eps)
    return torch.cat((text, image), 1)


def _rms_norm(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    if weight is None or weight.dtype == x.dtype:
        return F.rms_norm(x, x.shape[-1:], weight, eps)
    wide = compute_dtype(x.dtype)
    return F.rms_norm(x.to(wide), x.shape[-1:], weight.to(wide), eps).to(x.dtype)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    """Rotate the pairs of `x` ``[B, M, H, D]`` by tables ``[1 or B, M, D]``."""
    wide = compute_dtype(x.dtype)
    cos, sin = cos.to(wide)[:, :, None], sin.to(wide)[:, :, None]
    if interleaved:
        rotation = torch.complex(cos[..., ::2].contiguous(), sin[..., ::2].contiguous())
        pairs = torch.view_as_complex(x.to(wide).contiguous().unflatten(-1, (-1, 2)))
        return torch.view_as_real(pairs * rotation).flatten(-2).to(x.dtype)
    half = x.shape[-1] // 2
    cos, sin = cos[..., :half], sin[..., :half]
    first, second = x.to(wide).split(half, -1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), -1).to(x.dtype)
