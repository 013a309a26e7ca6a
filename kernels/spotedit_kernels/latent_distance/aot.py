"""The schedules of the latent distance, for ahead-of-time compilation. Needs Triton."""

from __future__ import annotations

from ..schedules import Schedule
from .kernel import BLOCK_C, BLOCK_N, NUM_WARPS, _latent_distance


def schedules(target: str) -> list[Schedule]:
    """bf16 and fp32 latents with a velocity, whose sigma is on the device; a clean estimate."""
    names = _latent_distance.arg_names
    return [
        Schedule(
            f"latent_distance {dtype}{what}",
            _latent_distance,
            {
                **dict.fromkeys(("p_x", "p_y", "p_velocity"), f"*{dtype}"),
                **dict.fromkeys(("p_sigma", "p_out"), "*fp32"),
                "sigma": "fp32",
            },
            {
                **{name: 1 for name in names if name.endswith("_c")},
                "SIGMA": sigma,
                "BLOCK_N": BLOCK_N,
                "BLOCK_C": BLOCK_C,
            },
            NUM_WARPS,
            aligned=("channels", *(name for name in names if name.endswith(("_b", "_n")))),
        )
        for dtype, what, sigma in (
            ("bf16", "", "tensor"),
            ("fp32", "", "tensor"),
            ("bf16", " clean", "none"),
        )
    ]
