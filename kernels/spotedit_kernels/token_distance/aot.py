"""The schedules of the distance, for ahead-of-time compilation. Needs Triton."""

from __future__ import annotations

from ..schedules import Schedule
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
    """bf16 maps against prepared unit vectors; channels_last against plain maps; the pooling."""
    pointers = {"p_x": "*bf16", "p_y": "*bf16", "p_map": "*fp32"}
    blocks = {"BLOCK_P": BLOCK_P, "BLOCK_C": BLOCK_C}
    return [
        Schedule(
            "token_distance bf16 NCHW, unit y",
            _distance,
            {**pointers, "p_y": "*fp32"},
            {"x_p": 1, "y_p": 1, "UNIT_Y": True, **blocks},
            NUM_WARPS,
            aligned=("n", "channels", "x_b", "x_c", "y_b", "y_c"),
        ),
        Schedule(
            "token_distance bf16 channels_last",
            _distance,
            pointers,
            {"x_c": 1, "y_c": 1, "UNIT_Y": False, **blocks},
            NUM_WARPS,
            aligned=("n", "channels", "x_b", "x_p", "y_b", "y_p"),
        ),
        Schedule(
            "token_distance pooling",
            _pool,
            {"p_map": "*fp32", "p_out": "*fp32", "share": "fp32"},
            {"PATCH": 2, "BLOCK": POOL_BLOCK},
            POOL_WARPS,
        ),
    ]
