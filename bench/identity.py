"""Whether edits are right, before their speed is worth printing."""

import sys
from typing import Any

import numpy as np
import torch

import spotedit

from .kontext import SHAPES, arguments, build
from .speed import rectangle
from .unfused import unfused

# relative errors of a whole edit; in bfloat16 another order of attention's sums makes 0.004, and
# attention with half its scale 0.025
BOUNDS = {torch.float32: 1e-4, torch.bfloat16: 0.02}
_GRID = (4, 4)  # tokens of the tiny shape
_STEPS = 8


def check(device: str, dtype: torch.dtype) -> None:
    """End the process if an edit of the tiny shape in which nothing may be skipped is not the dense
    one, or if the unfused spot step is not ours; in fp32 and in `dtype`.
    """
    everything, part = np.ones(_GRID, dtype=bool), rectangle(_GRID, 0.25)
    pipe = build(SHAPES["tiny"], device, torch.float32)
    wrong = []
    for kind in dict.fromkeys((torch.float32, dtype)):
        pipe.to(kind)
        errors = {
            "all tokens active": _relative(
                _spot(pipe, everything, condition_cache=False), _latents(pipe)
            ),
            "unfused": _relative(_unfused(pipe, part), _spot(pipe, part)),
        }
        wrong += [
            f"{name}, {kind}: relative error {error:.2g}; expected at most {BOUNDS[kind]:.2g}"
            for name, error in errors.items()
            if not error <= BOUNDS[kind]  # nan is wrong too
        ]
    if wrong:
        sys.exit("\n".join(["no speed is measured, the edits are wrong", *wrong]))


def _latents(pipe: Any) -> torch.Tensor:
    given = arguments(SHAPES["tiny"], pipe.device, pipe.dtype, _STEPS)
    return pipe(**given, output_type="latent").images.float()


def _spot(pipe: Any, mask: np.ndarray, **options: Any) -> torch.Tensor:
    with spotedit.enable(pipe, **options) as handle:
        handle.set_mask(mask, mode="replace")
        return _latents(pipe)


def _unfused(pipe: Any, mask: np.ndarray) -> torch.Tensor:
    with unfused():
        return _spot(pipe, mask)


def _relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())
