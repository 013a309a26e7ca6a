"""The latent distance's schedules for ahead-of-time compilation. Importing it imports Triton."""

from __future__ import annotations

from ..schedule import Schedule
from .kernel import BLOCK_C, BLOCK_N, NUM_WARPS, _latent_distance


def schedules(target: str) -> list[Schedule]:
    """Return bf16 and fp32 latents with sigma on the device, and clean latents in bf16."""
    strides = [name for name in _latent_distance.arg_names if name.startswith("stride_")]
    unit_strides = [name for name in strides if name.endswith("c")]
    aligned_strides = [name for name in strides if name not in unit_strides]
    return [
        Schedule(
            f"latent_distance {dtype}{suffix}",
            _latent_distance,
            {
                **dict.fromkeys(("p_x", "p_y", "p_velocity"), f"*{dtype}"),
                **dict.fromkeys(("p_sigma", "p_out"), "*fp32"),
                "sigma": "fp32",
            },
            {
                **dict.fromkeys(unit_strides, 1),
                "SIGMA": sigma,
                "BLOCK_N": BLOCK_N,
                "BLOCK_C": BLOCK_C,
            },
            NUM_WARPS,
            aligned=("num_channels", *aligned_strides),
        )
        for dtype, suffix, sigma in (
            ("bf16", "", "tensor"),
            ("fp32", "", "tensor"),
            ("bf16", " clean", "none"),
        )
    ]
