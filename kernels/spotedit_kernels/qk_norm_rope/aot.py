"""The schedules of norm and rotation, for ahead-of-time compilation. Needs Triton."""

from __future__ import annotations

from ..schedules import Schedule
from .kernel import NUM_WARPS, TILE, _qk_norm_rope


def schedules(target: str) -> list[Schedule]:
    """Spot steps with the prompt's own weights, a full step with k_ref, and half-split pairs."""
    names = _qk_norm_rope.arg_names
    spot = ("p_slots", "p_text_q_weight", "p_text_k_weight")
    full = ("p_k_ref", "p_cos_ref", "p_sin_ref", "p_text_q_weight", "p_text_k_weight")
    optional = {*spot, *full}
    return [
        Schedule(
            f"qk_norm_rope {dtype} D={d} {what}",
            _qk_norm_rope,
            {
                **{name: f"*{dtype}" for name in names if name.startswith("p_")},
                **dict.fromkeys(("p_cos", "p_sin", "p_cos_ref", "p_sin_ref"), "*fp32"),
                "p_slots": "*i64",
                "eps": "fp32",
            },
            {
                **{name: 1 for name in names if name.endswith("_d")},
                **dict.fromkeys(optional - set(given)),
                "ALIGNED": aligned,
                "INTERLEAVED": interleaved,
                "HEAD_DIM": d,
                "BLOCK_P": TILE // d,
                "BLOCK_D": d,
            },
            NUM_WARPS,
            aligned=tuple(n for n in names if n.endswith(("_b", "_s", "_h")) and n != "slots_b"),
        )
        for what, dtype, d, given, aligned, interleaved in (
            ("spot", "bf16", 64, spot, True, True),
            ("spot", "bf16", 128, spot, True, True),
            ("spot", "fp16", 128, spot, True, True),
            ("full with k_ref", "bf16", 128, full, False, True),
            ("spot, half-split, tables at the slots", "bf16", 128, spot, False, False),
        )
    ]
