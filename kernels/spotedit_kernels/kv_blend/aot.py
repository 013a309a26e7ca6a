"""The schedules of the blend, for ahead-of-time compilation. Needs Triton."""

from __future__ import annotations

from ..schedules import Schedule
from .kernel import NUM_WARPS, TILE, _kv_blend


def schedules(target: str) -> list[Schedule]:
    """Heads of 64 and 128, with the weight from a device-side time."""
    names = _kv_blend.arg_names
    return [
        Schedule(
            f"kv_blend {dtype} D={d}",
            _kv_blend,
            {
                **{name: f"*{dtype}" for name in names if name.startswith("p_")},
                "p_index": "*i64",
                "p_weight": "*fp32",
                "weight": "fp32",
            },
            {
                **{name: 1 for name in names if name.endswith("_d")},
                "WEIGHT": "time",
                "HEAD_DIM": d,
                "BLOCK_P": TILE // d,
                "BLOCK_D": d,
            },
            NUM_WARPS,
            aligned=tuple(n for n in names if n.endswith(("_b", "_s", "_h")) and n != "index_b"),
        )
        for dtype in ("bf16", "fp16")
        for d in (64, 128)
    ]
