"""The schedules of attention, for ahead-of-time compilation. Needs Triton."""

from __future__ import annotations

import torch

from ..schedules import Schedule
from .kernel import REDUCE_ROWS, REDUCE_WARPS, _attend, _reduce
from .plan import DESCRIPTOR_TILES, choose_tile


def _schedule(
    target: str, name: str, dtype: str, d: int, *,
    index: bool = False, mask: bool = False, int8: bool = False, split: bool = False,
) -> Schedule:  # fmt: skip
    described = not (index or mask or int8) and target in DESCRIPTOR_TILES
    tile = choose_tile(target, torch.bfloat16, d, descriptors=described, int8=int8)
    types = dict.fromkeys(("p_q", "p_k", "p_v", "p_out"), f"*{dtype}")
    if described:
        for n, rows in (("p_q", tile.m), ("p_k", tile.n), ("p_v", tile.n)):
            types[n] = f"tensordesc<{dtype}[1, {rows}, {d}]>"
    if int8:
        types |= {"p_k": "*i8", "p_v": "*i8"}
    given = {
        "p_index": ("*i64", index),
        "p_mask": ("*i1", mask),
        "p_k_scale": ("*fp32", int8),
        "p_v_scale": ("*fp32", int8),
        "p_part": ("*fp32", split),
        "p_lse": ("*fp32", split),
    }
    units = ("q_d", "k_d", "v_d", "out_d", "mask_s", "k_scale_h", "v_scale_h")
    return Schedule(
        f"gathered_attention {dtype} D={d}{name}",
        _attend,
        types | {n: kind for n, (kind, there) in given.items() if there} | {"scale": "fp32"},
        {
            **{n: None for n, (_, there) in given.items() if not there},
            **dict.fromkeys(units, 1),
            "INDEX": index, "KEY_MASK": mask, "INT8": int8, "SPLIT": split,
            "DESCRIPTORS": described, "HEAD_DIM": d, "BLOCK_D": d,
            "BLOCK_M": tile.m, "BLOCK_N": tile.n,
        },
        tile.warps,
        tile.stages,
        aligned=tuple(f"{x}_{axis}" for x in ("q", "k", "v", "out") for axis in "bsh"),
        tensor_cores=True,
    )  # fmt: skip


def schedules(target: str) -> list[Schedule]:
    """Compact queries; at a head dim of 128 those of a spot step, and the split's second kernel."""
    reduce = Schedule(
        "gathered_attention reduce bf16 D=128",
        _reduce,
        {"p_part": "*fp32", "p_lse": "*fp32", "p_out": "*bf16", "p_index": "*i64"},
        {"out_d": 1, "INDEX": True, "HEAD_DIM": 128, "BLOCK_D": 128, "BLOCK_M": REDUCE_ROWS},
        REDUCE_WARPS,
        aligned=("out_b", "out_s", "out_h"),
    )
    return [
        *(_schedule(target, "", dtype, d) for dtype in ("bf16", "fp16") for d in (64, 128)),
        *(_schedule(target, "", "bf16", d) for d in (256, 512)),
        _schedule(target, " index mask", "bf16", 128, index=True, mask=True),
        _schedule(target, " index int8", "bf16", 128, index=True, int8=True),
        _schedule(target, " index split", "bf16", 128, index=True, split=True),
        reduce,
    ]
