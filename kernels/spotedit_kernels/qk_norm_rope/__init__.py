"""RMSNorm and rotary embedding of queries and keys, and the write of K and V to their caches."""

from __future__ import annotations

import torch
from torch import Tensor

from ..checks import (
    check_device,
    check_dtype,
    check_floats,
    check_index,
    check_rank,
    check_shape,
    check_tensors,
)
from ..impl import Impl, choose_impl
from . import reference
from .reference import ConditionKeys, Weights

__all__ = ["qk_norm_rope"]

_OP = "qk_norm_rope"


def qk_norm_rope(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    slots: Tensor | None,
    cos: Tensor,
    sin: Tensor,
    *,
    text_len: int,
    q_weight: Tensor | None,
    k_weight: Tensor | None,
    text_q_weight: Tensor | None,
    text_k_weight: Tensor | None,
    eps: float,
    interleaved: bool,
    k_ref: Tensor | None = None,
    cos_ref: Tensor | None = None,
    sin_ref: Tensor | None = None,
    impl: Impl = "auto",
) -> Tensor:
    """Normalise and rotate the M rows of a step, and write their K and V to the caches.

    First RMSNorm (arXiv 1910.07467, eq. 4), ``x / sqrt(mean(x^2) + eps) * weight`` over D, rounded
    to the dtype; then the rotary embedding (arXiv 2104.09864, eq. 34) in fp32, rounded once more.
    The stock attention rounds at the same two points. V is copied unchanged. fp64 data is computed
    in fp64.

    Args:
        q, k, v: ``[B, M, H, D]`` before normalisation, D even; fp16, bf16, fp32 or fp64.
        k_cache, v_cache: ``[B, S, H, D]``, written in place; only the rows in `slots` change.
        slots: the place of each of the M rows in the joint sequence, int32 or int64, ``[M]`` or
            ``[B, M]``. A batch row lists each place, in 0..S-1, at most once; negative entries are
            padding and write nothing. None: rows 0..M-1 in order, with M = S (a full step).
        cos, sin: fp32 (or fp64 for fp64 data), either ``[S, D]``, read at the rows' slots, or
            ``[B, M, D]``, aligned with the rows. Both members of a pair hold the same angle:
            interleaved tables repeat every value twice, the others repeat the whole half.
        text_len: the first `text_len` of the M rows are prompt rows.
        q_weight, k_weight: ``[D]``, of q's dtype or fp32; None = no weight.
        text_q_weight, text_k_weight: the prompt rows' weights; None = the same weights as for the
            other rows (blocks with one stream).
        eps: a positive number, added to the mean square.
        interleaved: True pairs the elements (2i, 2i+1), as FLUX does; False pairs (i, i + D/2).
        k_ref: ``[B, C, H, D]``, written in place. It receives the keys of the last C rows of the
            joint sequence (slot S-C+j goes to row j), rotated with `cos_ref` and `sin_ref` instead.
            Its other rows do not change. On full steps it receives the condition's keys at the
            positions of the noise tokens.
        cos_ref, sin_ref: ``[C, D]``, of cos' dtype; needed with `k_ref`, and only with it.
        impl: "auto", "triton" or "reference"; an explicit one never falls back.

    Returns:
        q normalised and rotated, ``[B, M, H, D]``; unspecified on padded rows.

    Raises:
        TypeError: a dtype is not one of those listed.
        ValueError: a shape or a device does not fit; D is odd; `text_len` is not in 0..M; `eps` is
            not positive; only some of `k_ref`, `cos_ref` and `sin_ref` are given; `impl` is
            unknown.
        RuntimeError: impl="triton" was asked for and cannot run here.
    """
    _check_rows(q, k, v, k_cache, v_cache, slots, text_len)
    _check_tables(q, k_cache.shape[1], cos, sin)
    condition = _check_ref(q, k_cache.shape[1], k_ref, cos_ref, sin_ref)
    weights = {
        "q_weight": q_weight,
        "k_weight": k_weight,
        "text_q_weight": text_q_weight,
        "text_k_weight": text_k_weight,
    }
    _check_weights(q, weights, eps)
    check_device(_OP, q, k=k, v=v, k_cache=k_cache, v_cache=v_cache, slots=slots)
    tables = {"cos": cos, "sin": sin, "k_ref": k_ref, "cos_ref": cos_ref, "sin_ref": sin_ref}
    check_device(_OP, q, **tables, **weights)
    q_weights = Weights(q_weight if text_q_weight is None else text_q_weight, q_weight)
    k_weights = Weights(k_weight if text_k_weight is None else text_k_weight, k_weight)
    arguments = (
        q, k, v, k_cache, v_cache, slots, cos, sin,
        text_len, q_weights, k_weights, eps, interleaved, condition,
    )  # fmt: skip
    if choose_impl(_OP, impl, q) == "reference":
        return reference.qk_norm_rope(*arguments)
    from . import kernel  # not above: it imports Triton

    return kernel.qk_norm_rope(*arguments)


def _check_rows(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    slots: Tensor | None,
    text_len: int,
) -> None:
    check_tensors(_OP, q=q, k=k, v=v, k_cache=k_cache, v_cache=v_cache)
    check_rank(_OP, "q", q, "BMHD")
    check_rank(_OP, "k_cache", k_cache, "BSHD")
    (b, m, h, d), s = q.shape, k_cache.shape[1]
    for name, tensor in (("k", k), ("v", v)):
        check_shape(_OP, name, tensor, (b, m, h, d), "BMHD", f"{name} must have q's shape")
    for name, tensor in (("k_cache", k_cache), ("v_cache", v_cache)):
        hint = f"only the number of {name}'s rows may differ from q's"
        check_shape(_OP, name, tensor, (b, s, h, d), "BSHD", hint)
    check_floats(_OP, "q", q=q, k=k, v=v, k_cache=k_cache, v_cache=v_cache)
    if d == 0 or d % 2:
        raise ValueError(f"{_OP}: the head dim D must be even and positive, got {d}; pad the head.")
    if slots is not None:
        check_index(_OP, "slots", slots, b, length=m)
    elif m != s:
        raise ValueError(
            f"{_OP}: slots=None covers the cache in order and needs M = S = {s}, got M = {m}; "
            f"pass the slots of the rows."
        )
    if not 0 <= text_len <= m:
        raise ValueError(
            f"{_OP}: text_len must be in 0..M = {m}, got {text_len}; the prompt rows come first."
        )


def _check_tables(q: Tensor, s: int, cos: Tensor, sin: Tensor) -> None:
    check_tensors(_OP, cos=cos, sin=sin)
    b, m, _, d = q.shape
    for name, table in (("cos", cos), ("sin", sin)):
        check_dtype(_OP, name, table, _table_dtypes(q), "keep the tables in fp32")
        if tuple(table.shape) not in ((s, d), (b, m, d)):
            raise ValueError(
                f"{_OP}: {name} must have shape [S, D] = {(s, d)} or [B, M, D] = {(b, m, d)}, got "
                f"{tuple(table.shape)}; pass the table of the joint sequence or of the M rows."
            )
    axes = "SD" if cos.ndim == 2 else "BMD"
    check_shape(_OP, "sin", sin, tuple(cos.shape), axes, "cos and sin must have the same shape")


def _check_ref(
    q: Tensor, s: int, k_ref: Tensor | None, cos_ref: Tensor | None, sin_ref: Tensor | None
) -> ConditionKeys | None:
    """Check k_ref and its tables, and return the three; return None if none is given."""
    if k_ref is None and cos_ref is None and sin_ref is None:
        return None
    if k_ref is None or cos_ref is None or sin_ref is None:
        optional = {"k_ref": k_ref, "cos_ref": cos_ref, "sin_ref": sin_ref}
        missing = [name for name, tensor in optional.items() if tensor is None]
        raise ValueError(
            f"{_OP}: k_ref, cos_ref and sin_ref must be given together, got no "
            f"{' and no '.join(missing)}; pass all three on full steps and none on other steps."
        )
    check_tensors(_OP, k_ref=k_ref, cos_ref=cos_ref, sin_ref=sin_ref)
    check_floats(_OP, "q", q=q, k_ref=k_ref)
    check_rank(_OP, "k_ref", k_ref, "BCHD")
    (b, _, h, d), c = q.shape, k_ref.shape[1]
    check_shape(_OP, "k_ref", k_ref, (b, c, h, d), "BCHD", "only the number of rows may differ")
    if c > s:
        raise ValueError(f"{_OP}: k_ref holds the last C of S = {s} rows, got C = {c}; shorten it.")
    for name, table in (("cos_ref", cos_ref), ("sin_ref", sin_ref)):
        check_dtype(_OP, name, table, _table_dtypes(q), "keep the tables in fp32")
        check_shape(_OP, name, table, (c, d), "CD", "pass one row per row of k_ref")
    return ConditionKeys(k_ref, cos_ref, sin_ref)


def _table_dtypes(q: Tensor) -> tuple[torch.dtype, ...]:
    if q.dtype == torch.float64:
        return torch.float32, torch.float64
    return (torch.float32,)


def _check_weights(q: Tensor, weights: dict[str, Tensor | None], eps: float) -> None:
    for name, weight in weights.items():
        if weight is not None:
            check_tensors(_OP, **{name: weight})
            check_dtype(_OP, name, weight, (q.dtype, torch.float32), "convert it to q's dtype")
            check_shape(_OP, name, weight, (q.shape[-1],), "D", "pass one weight per channel")
    if not eps > 0:
        raise ValueError(f"{_OP}: eps must be positive, got {eps}; the models use 1e-6.")
