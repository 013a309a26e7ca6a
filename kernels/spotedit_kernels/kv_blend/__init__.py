"""Blend of cached keys and values with those of the condition image (SpotFusion)."""

from __future__ import annotations

import math

from torch import Tensor

from ..checks import (
    FLOATS,
    check_device,
    check_dtype,
    check_floats,
    check_index,
    check_number,
    check_rank,
    check_scalar,
    check_shape,
    check_tensors,
    compute_dtype,
)
from ..impl import Impl, choose_impl
from . import reference

__all__ = ["cosine_weight", "kv_blend"]

_OP = "kv_blend"
_ROUND_OFF = 1e-6  # how far t = 1 - sigma may leave [0, 1] if sigma was in fp32


def cosine_weight(t: float | Tensor) -> float | Tensor:
    """Return ``cos^2(pi t / 2)``, which falls from 1 at t = 0 over 1/2 at t = 1/2 to 0 at t = 1.

    It is the weight alpha of SpotEdit, arXiv 2512.22323, eqs. 7-9.

    Args:
        t: a float or a tensor of any shape, in [0, 1] (a sigma, not a timestep of 0..1000). The
            values of a tensor are not checked, because that would synchronise with the device.

    Returns:
        A float for a float. For a tensor, a tensor of its shape: fp64 if t is fp64, else fp32.

    Raises:
        TypeError: `t` is neither a number nor a floating tensor.
        ValueError: a float `t` is not finite or leaves [0, 1] by more than 1e-6.
    """
    if isinstance(t, Tensor):
        check_dtype("cosine_weight", "t", t, FLOATS, "convert it with .float()")
        return (t.to(compute_dtype(t.dtype)) * (math.pi / 2)).cos().square()
    check_number("cosine_weight", "t", t)
    if not -_ROUND_OFF <= t <= 1 + _ROUND_OFF:
        raise ValueError(
            f"cosine_weight: t must be in [0, 1], got {t}; pass sigma (or 1 - sigma), "
            f"which is a timestep divided by 1000."
        )
    return math.cos(math.pi / 2 * t) ** 2


def kv_blend(
    k_out: Tensor,
    v_out: Tensor,
    k_cached: Tensor,
    v_cached: Tensor,
    k_ref: Tensor,
    v_ref: Tensor,
    index: Tensor,
    *,
    t: float | Tensor | None = None,
    weight: float | Tensor | None = None,
    impl: Impl = "auto",
) -> None:
    """Write ``out = w cached + (1 - w) ref`` to the indexed rows of K and V, in place.

    `t` computes the weight w = cos^2(pi t / 2) of SpotEdit, arXiv 2512.22323, eqs. 7-9; `weight`
    is w itself. Keys are blended after their rotary embedding, so `k_ref` must hold keys that are
    rotated to the position of the row that they are blended into. Arithmetic is in fp32 (fp64 for
    fp64 data) with one rounding at the end; w = 0 and w = 1 reproduce their operand exactly.

    Args:
        k_out, v_out: ``[B, S, H, D]``, fp16, bf16, fp32 or fp64; only the indexed rows are written.
            ``k_out is k_cached`` and ``v_out is v_cached`` are allowed.
        k_cached, v_cached: ``[B, S, H, D]``, the values of the last step that computed the row.
        k_ref, v_ref: ``[B, R, H, D]``, read at the same row numbers; usually R = S. A smaller R
            is allowed if it exceeds every index, e.g. ``v_cached[:, N:]`` to read, for each
            noise row, the condition row N rows further on. They must not overlap the rows written.
        index: the rows to blend, int32 or int64, ``[M]`` or ``[B, M]``. A batch row lists each
            row, in 0..S-1, at most once; negative entries are padding.
        t: a float or a 0-d tensor in [0, 1]; the value of a tensor is not checked.
        weight: a float or a 0-d tensor, instead of `t`.
        impl: "auto", "triton" or "reference"; an explicit one never falls back.

    Raises:
        TypeError: a dtype is not one of those listed.
        ValueError: a shape or a device does not fit; both or neither of `t` and `weight` are
            given; a float `t` is outside [0, 1]; a float `weight` is not finite; `impl` is unknown.
        RuntimeError: impl="triton" was asked for and cannot run here.
    """
    tensors = {
        "k_cached": k_cached,
        "v_cached": v_cached,
        "k_out": k_out,
        "v_out": v_out,
        "k_ref": k_ref,
        "v_ref": v_ref,
    }
    _check(tensors, index)
    arguments = (k_out, v_out, k_cached, v_cached, k_ref, v_ref, index)
    value, is_time = _weight(t, weight, k_cached)
    if choose_impl(_OP, impl, k_cached) == "reference":
        reference.kv_blend(*arguments, cosine_weight(value) if is_time else value)
        return
    from . import kernel  # not above: it imports Triton

    kernel.kv_blend(*arguments, value, is_time)


def _check(tensors: dict[str, Tensor], index: Tensor) -> None:
    check_tensors(_OP, **tensors)
    check_rank(_OP, "k_cached", tensors["k_cached"], "BSHD")
    b, s, h, d = tensors["k_cached"].shape
    for name, tensor in tensors.items():
        check_rank(_OP, name, tensor, "BSHD")
        is_ref = name.endswith("ref")
        num_rows = tensor.shape[1] if is_ref else s
        hint = f"{name} must have k_cached's shape" + (", except for the rows" if is_ref else "")
        check_shape(_OP, name, tensor, (b, num_rows, h, d), "BSHD", hint)
    check_floats(_OP, "k_cached", **tensors)
    check_index(_OP, "index", index, b)
    check_device(_OP, tensors["k_cached"], **tensors, index=index)


def _weight(
    t: float | Tensor | None, weight: float | Tensor | None, like: Tensor
) -> tuple[float | Tensor, bool]:
    """Return the weight on the cached values, and whether it still has to be computed from t.

    That is so if t is a tensor, whose value is not read here; then the first result is t.
    """
    value = weight if t is None else t
    if value is None or (t is not None and weight is not None):
        raise ValueError(
            f"{_OP}: exactly one of t and weight must be given, got "
            f"{'neither' if value is None else 'both'}; t computes cos^2(pi t / 2), weight is w."
        )
    name = "weight" if t is None else "t"
    check_scalar(_OP, name, value, like)
    if isinstance(value, Tensor):
        return value, t is not None
    return float(value if t is None else cosine_weight(t)), False
