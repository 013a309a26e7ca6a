"""The selection's schedules for ahead-of-time compilation. Importing it imports Triton."""

from __future__ import annotations

from ..schedule import Schedule
from .kernel import (
    CUT_BLOCK,
    CUT_WARPS,
    LIST_BLOCK,
    LIST_WARPS,
    MARK_BLOCK,
    MARK_WARPS,
    _cut,
    _list,
    _mark,
)
from .reference import ITERATIONS


def schedules(target: str) -> list[Schedule]:
    """Return the two-means cut, the active set with every option on, and the list."""
    return [
        Schedule(
            "select_tokens two-means cut",
            _cut,
            {"p_scores": "*fp32", "p_cut": "*fp32"},
            {"ITERATIONS": ITERATIONS, "BLOCK": CUT_BLOCK},
            CUT_WARPS,
            aligned=("stride_scores_b",),
        ),
        Schedule(
            "select_tokens active set",
            _mark,
            {
                **dict.fromkeys(("p_scores", "p_cut"), "*fp32"),
                **dict.fromkeys(("threshold", "hysteresis"), "fp32"),
                **dict.fromkeys(("p_previous", "p_mask", "p_active"), "*i1"),
            },
            {"AUTO": True, "RULE": "intersect", "PREVIOUS": True, "BLOCK": MARK_BLOCK},
            MARK_WARPS,
            aligned=("stride_scores_b", "stride_previous_b", "stride_mask_b"),
        ),
        Schedule(
            "select_tokens list",
            _list,
            {"p_active": "*i1", "p_index": "*i32", "p_count": "*i32"},
            {"BLOCK": LIST_BLOCK},
            LIST_WARPS,
        ),
    ]
