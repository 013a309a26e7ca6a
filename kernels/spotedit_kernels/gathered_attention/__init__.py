"""Attention of gathered query rows against a full cache of keys and values."""

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
from .plan import MAX_HEAD_DIM

__all__ = ["gathered_attention"]

_OP = "gathered_attention"


def gathered_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    index: Tensor | None = None,
    key_mask: Tensor | None = None,
    k_scale: Tensor | None = None,
    v_scale: Tensor | None = None,
    scale: float | None = None,
    out: Tensor | None = None,
    impl: Impl = "auto",
) -> Tensor:
    """Compute ``softmax(scale q k^T) v`` for M query rows against all S cached keys and values.

    It is the attention of a spot step (SpotEdit, arXiv 2512.22323): the queries are the prompt and
    the active tokens only; the keys and values are the whole joint sequence.

    Args:
        q: ``[B, M, H, D]`` without `index`, ``[B, S, H, D]`` with it; fp16, bf16, fp32 or fp64.
        k, v: ``[B, S, H, D]``, of q's dtype, or both int8 with `k_scale` and `v_scale`. Every
            element must be finite, also where the mask hides its key.
        index: the rows of the joint sequence to compute, int32 or int64, ``[M]`` or ``[B, M]``. The
            rows of one batch entry lie in 0..S-1 and do not repeat; negative numbers are padding.
        key_mask: bool ``[B, S]``, True = attend. A batch row that masks every key gives 0.
        k_scale, v_scale: fp32 ``[B, S, H]``; an int8 value times its scale is the key or value.
        scale: factor on the logits; default ``1 / sqrt(D)``.
        out: a tensor of q's dtype and shape that receives the result and is returned. It may be q
            itself.
        impl: "auto", "triton" or "reference"; an explicit one never falls back.

    Returns:
        ``[B, M, H, D]`` without `index`. With it ``[B, S, H, D]``: only the indexed rows are read
        from q and written; the other rows keep the values of `out`, or are 0 without `out`.

    Raises:
        TypeError: a dtype is not one of those listed.
        ValueError: a shape or a device does not fit; scales are missing or superfluous; `impl` is
            unknown.
        RuntimeError: impl="triton" was asked for and cannot run here.
    """
    _check_rows(q, k, v, index)
    kv_scales = _check_scales(q, k, v, k_scale, v_scale)
    _check_options(q, k, index, key_mask, scale, out)
    is_plain = index is None and key_mask is None and kv_scales is None
    arguments = (q, k, v, index, key_mask, kv_scales, scale, out)
    if _choose(impl, q, is_plain) == "reference":
        return reference.gathered_attention(*arguments)
    from . import kernel  # not above: it imports Triton

    return kernel.gathered_attention(*arguments)


def _choose(impl: Impl, q: Tensor, is_plain: bool) -> str:
    """Return the implementation. `is_plain`: there is neither an index nor a mask nor int8.

    On a GPU "auto" leaves two cases to the reference: head dims that the kernel does not take, and
    plain attention in half precision on Hopper and Blackwell, where cuDNN, which
    `scaled_dot_product_attention` can call, is faster than the kernel (measured on an H200).
    """
    chosen = choose_impl(_OP, impl, q)
    if chosen == "reference":
        return chosen
    if q.shape[-1] > MAX_HEAD_DIM:
        if impl == "auto":
            return "reference"
        raise RuntimeError(
            f"{_OP}: impl='triton' takes head dims up to {MAX_HEAD_DIM}, "
            f"got {q.shape[-1]}; pass impl='auto' or impl='reference'."
        )
    if impl == "auto" and is_plain and q.dtype != torch.float32 and torch.version.hip is None:
        major, _ = torch.cuda.get_device_capability(q.device)
        return "reference" if major in (9, 10) else chosen
    return chosen


def _check_rows(q: Tensor, k: Tensor, v: Tensor, index: Tensor | None) -> None:
    check_tensors(_OP, q=q, k=k, v=v)
    check_rank(_OP, "q", q, "BMHD" if index is None else "BSHD")
    check_rank(_OP, "k", k, "BSHD")
    check_floats(_OP, "q", q=q)
    b, s, h, d = k.shape
    if s == 0:
        raise ValueError(
            f"{_OP}: k must have at least one row, got {tuple(k.shape)}; fill the cache first."
        )
    check_shape(_OP, "v", v, (b, s, h, d), "BSHD", "k and v must have the same shape")
    if index is None:
        hint = "q must have k's batch, heads and head dim"
        check_shape(_OP, "q", q, (b, q.shape[1], h, d), "BMHD", hint)
    else:
        hint = "with index, q covers the joint sequence; pass gathered rows without index"
        check_shape(_OP, "q", q, (b, s, h, d), "BSHD", hint)
        check_index(_OP, "index", index, b)
    check_device(_OP, q, k=k, v=v, index=index)


def _check_scales(
    q: Tensor, k: Tensor, v: Tensor, k_scale: Tensor | None, v_scale: Tensor | None
) -> tuple[Tensor, Tensor] | None:
    """Check the dtypes of k and v and the int8 scales; return the scales, or None without int8."""
    if k.dtype != torch.int8:
        hint = "convert it to q's dtype, or quantise it to int8 and pass its scale"
        check_dtype(_OP, "k", k, (q.dtype, torch.int8), hint)
        check_dtype(_OP, "v", v, (q.dtype,), "k and v must have the same dtype")
        if k_scale is not None or v_scale is not None:
            raise ValueError(
                f"{_OP}: k_scale and v_scale belong to int8 k and v, got k of {k.dtype}; drop them."
            )
        return None
    shape = tuple(k.shape[:3])
    if k_scale is None or v_scale is None:
        raise ValueError(
            f"{_OP}: int8 k and v need k_scale and v_scale of shape [B, S, H] = {shape}, "
            f"got {'no k_scale' if k_scale is None else 'no v_scale'}; pass both."
        )
    check_dtype(_OP, "v", v, (torch.int8,), "quantise both k and v or neither")
    check_tensors(_OP, k_scale=k_scale, v_scale=v_scale)
    for name, value in (("k_scale", k_scale), ("v_scale", v_scale)):
        check_dtype(_OP, name, value, (torch.float32,), "convert it with .float()")
        check_shape(_OP, name, value, shape, "BSH", "pass one scale per row and head")
    check_device(_OP, q, k_scale=k_scale, v_scale=v_scale)
    return k_scale, v_scale


def _check_options(
    q: Tensor,
    k: Tensor,
    index: Tensor | None,
    key_mask: Tensor | None,
    scale: float | None,
    out: Tensor | None,
) -> None:
    if key_mask is not None:
        check_tensors(_OP, key_mask=key_mask)
        check_dtype(_OP, "key_mask", key_mask, (torch.bool,), "True = attend; use mask.bool()")
        check_shape(_OP, "key_mask", key_mask, tuple(k.shape[:2]), "BS", "pass one flag per key")
    if scale is not None and not isinstance(scale, int | float):
        raise TypeError(f"{_OP}: scale must be a float or None, got {type(scale).__name__}.")
    if out is not None:
        check_tensors(_OP, out=out)
        check_dtype(_OP, "out", out, (q.dtype,), "allocate it with torch.empty_like(q)")
        axes = "BMHD" if index is None else "BSHD"
        check_shape(_OP, "out", out, tuple(q.shape), axes, "out must have q's shape")
    check_device(_OP, q, key_mask=key_mask, out=out)
