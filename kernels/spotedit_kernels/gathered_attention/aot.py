"""The attention kernels' schedules for ahead-of-time compilation. Importing it imports Triton."""

from __future__ import annotations

from typing import Any

import torch

from ..schedule import Schedule
from .kernel import REDUCE_ROWS, REDUCE_WARPS, _attend, _reduce
from .plan import DESCRIPTOR_TILES, choose_tile


def _schedule(
    target: str, suffix: str, dtype: str, head_dim: int, *,
    index: bool = False, mask: bool = False, int8: bool = False, split: bool = False,
) -> Schedule:  # fmt: skip
    """Return the schedule of `_attend` for these options; `suffix` names them in its name."""
    descriptors = not (index or mask or int8) and target in DESCRIPTOR_TILES
    tile = choose_tile(target, torch.bfloat16, head_dim, descriptors=descriptors, int8=int8)
    types = dict.fromkeys(("p_q", "p_k", "p_v", "p_out"), f"*{dtype}") | {"scale": "fp32"}
    if descriptors:
        for name, num_rows in (("p_q", tile.m), ("p_k", tile.n), ("p_v", tile.n)):
            types[name] = f"tensordesc<{dtype}[1, {num_rows}, {head_dim}]>"
    if int8:
        types |= {"p_k": "*i8", "p_v": "*i8"}
    unit_strides = (
        "stride_qd", "stride_kd", "stride_vd", "stride_od",
        "stride_mask_s", "stride_k_scale_h", "stride_v_scale_h",
    )  # fmt: skip
    constants: dict[str, Any] = {
        **dict.fromkeys(unit_strides, 1),
        "INDEX": index, "KEY_MASK": mask, "INT8": int8, "SPLIT": split,
        "DESCRIPTORS": descriptors, "HEAD_DIM": head_dim, "BLOCK_D": head_dim,
        "BLOCK_M": tile.m, "BLOCK_N": tile.n,
    }  # fmt: skip
    for name, triton_type, is_passed in (
        ("p_index", "*i64", index),
        ("p_mask", "*i1", mask),
        ("p_k_scale", "*fp32", int8),
        ("p_v_scale", "*fp32", int8),
        ("p_partial", "*fp32", split),
        ("p_lse", "*fp32", split),
    ):
        if is_passed:
            types[name] = triton_type
        else:
            constants[name] = None
    return Schedule(
        f"gathered_attention {dtype} D={head_dim}{suffix}",
        _attend,
        types,
        constants,
        tile.warps,
        tile.stages,
        aligned=tuple(f"stride_{tensor}{axis}" for tensor in "qkvo" for axis in "bsh"),
        tensor_cores=True,
    )


def schedules(target: str) -> list[Schedule]:
    """Return the schedules without options at all head dims, and the others at head dim 128.

    The others are those of spot steps, with an index, and the reduction.
    """
    reduce = Schedule(
        "gathered_attention reduce bf16 D=128",
        _reduce,
        {"p_partial": "*fp32", "p_lse": "*fp32", "p_out": "*bf16", "p_index": "*i64"},
        {"stride_od": 1, "INDEX": True, "HEAD_DIM": 128, "BLOCK_D": 128, "BLOCK_M": REDUCE_ROWS},
        REDUCE_WARPS,
        aligned=("stride_ob", "stride_os", "stride_oh"),
    )
    return [
        *(_schedule(target, "", dtype, d) for dtype in ("bf16", "fp16") for d in (64, 128)),
        *(_schedule(target, "", "bf16", d) for d in (256, 512)),
        _schedule(target, " index mask", "bf16", 128, index=True, mask=True),
        _schedule(target, " index int8", "bf16", 128, index=True, int8=True),
        _schedule(target, " index split", "bf16", 128, index=True, split=True),
        reduce,
    ]
