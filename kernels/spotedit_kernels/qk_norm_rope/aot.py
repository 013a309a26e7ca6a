"""Norm and rotation's schedules for ahead-of-time compilation. Importing it imports Triton."""

from __future__ import annotations

from ..schedule import Schedule
from .kernel import NUM_WARPS, TILE, _qk_norm_rope


def schedules(target: str) -> list[Schedule]:
    """Return spot steps with prompt weights, a full step with k_ref, and half-split pairs."""
    names = _qk_norm_rope.arg_names
    strides = [name for name in names if name.startswith("stride_")]
    unit_strides = [name for name in strides if name.endswith("d")]
    aligned_strides = [name for name in strides if name not in (*unit_strides, "stride_slots_b")]
    spot = {"p_slots", "p_text_q_weight", "p_text_k_weight"}
    tables = ("p_cos", "p_sin", "p_cos_condition", "p_sin_condition")
    condition = {"p_k_condition", "p_cos_condition", "p_sin_condition"}
    full = condition | {"p_text_q_weight", "p_text_k_weight"}
    return [
        Schedule(
            f"qk_norm_rope {dtype} D={head_dim} {suffix}",
            _qk_norm_rope,
            {
                **{name: f"*{dtype}" for name in names if name.startswith("p_")},
                **dict.fromkeys(tables, "*fp32"),
                "p_slots": "*i64",
                "eps": "fp32",
            },
            {
                **dict.fromkeys(unit_strides, 1),
                **dict.fromkeys((spot | full) - passed),
                "TABLES_BY_ENTRY": tables_by_entry,
                "INTERLEAVED": interleaved,
                "HEAD_DIM": head_dim,
                "BLOCK_P": TILE // head_dim,
                "BLOCK_D": head_dim,
            },
            NUM_WARPS,
            aligned=tuple(aligned_strides),
        )
        for suffix, dtype, head_dim, passed, tables_by_entry, interleaved in (
            ("spot", "bf16", 64, spot, True, True),
            ("spot", "bf16", 128, spot, True, True),
            ("spot", "fp16", 128, spot, True, True),
            ("full with k_ref", "bf16", 128, full, False, True),
            ("spot, half-split, tables at the slots", "bf16", 128, spot, False, False),
        )
    ]
