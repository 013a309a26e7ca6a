"""The blend's schedules for ahead-of-time compilation. Importing it imports Triton."""

from __future__ import annotations

from ..schedule import Schedule
from .kernel import NUM_WARPS, TILE, _kv_blend


def schedules(target: str) -> list[Schedule]:
    """Return the blend of heads of 64 and 128 channels, with t on the device."""
    names = _kv_blend.arg_names
    strides = [name for name in names if name.startswith("stride_")]
    unit_strides = [name for name in strides if name.endswith("_d")]
    aligned = [name for name in strides if name not in (*unit_strides, "stride_index_b")]
    return [
        Schedule(
            f"kv_blend {dtype} D={head_dim}",
            _kv_blend,
            {
                **{name: f"*{dtype}" for name in names if name.startswith("p_")},
                "p_index": "*i64",
                "p_weight": "*fp32",
                "weight": "fp32",
            },
            {
                **dict.fromkeys(unit_strides, 1),
                "WEIGHT": "time",
                "HEAD_DIM": head_dim,
                "BLOCK_P": TILE // head_dim,
                "BLOCK_D": head_dim,
            },
            NUM_WARPS,
            aligned=tuple(aligned),
        )
        for dtype in ("bf16", "fp16")
        for head_dim in (64, 128)
    ]
