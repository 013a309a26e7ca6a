"""The token distance's schedules for ahead-of-time compilation. Importing it imports Triton."""

from __future__ import annotations

from ..schedule import Schedule
from .kernel import (
    BLOCK_C,
    BLOCK_P,
    NUM_WARPS,
    POOL_BLOCK,
    POOL_WARPS,
    _distance,
    _pool,
)


def schedules(target: str) -> list[Schedule]:
    """Return the distance in NCHW to unit vectors and in channels_last to maps, and the pooling."""
    pointers = {"p_x": "*bf16", "p_y": "*bf16", "p_map": "*fp32"}
    sizes = ("num_positions", "num_channels")
    blocks = {"BLOCK_P": BLOCK_P, "BLOCK_C": BLOCK_C}
    return [
        Schedule(
            "token_distance bf16 NCHW, unit y",
            _distance,
            {**pointers, "p_y": "*fp32"},
            {"stride_xp": 1, "stride_yp": 1, "UNIT_Y": True, **blocks},
            NUM_WARPS,
            aligned=(*sizes, "stride_xb", "stride_xc", "stride_yb", "stride_yc"),
        ),
        Schedule(
            "token_distance bf16 channels_last",
            _distance,
            pointers,
            {"stride_xc": 1, "stride_yc": 1, "UNIT_Y": False, **blocks},
            NUM_WARPS,
            aligned=(*sizes, "stride_xb", "stride_xp", "stride_yb", "stride_yp"),
        ),
        Schedule(
            "token_distance pooling",
            _pool,
            {"p_map": "*fp32", "p_out": "*fp32", "share": "fp32"},
            {"PATCH": 2, "BLOCK": POOL_BLOCK},
            POOL_WARPS,
        ),
    ]
