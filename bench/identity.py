"""Check that edits are right. The speed of wrong ones is not worth printing."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

import spotedit

from .kontext import SHAPES, arguments, build
from .speed import rectangle
from .unfused import unfused

FP32_BOUND = 1e-4  # relative error of a whole edit
_GRID = (4, 4)  # token grid of the tiny shape
# With this scheduler a timestep is 1000 sigma. These timesteps, and 1000 times the guidance scale,
# are exact in bfloat16. Other timesteps would be rounded before they are embedded. In a random
# network that alone makes an error of 0.2 in a whole edit, which would hide every other error.
_SIGMAS = [1.0, 0.896, 0.768, 0.64, 0.512, 0.384, 0.256, 0.128]
_GUIDANCE = 3.52
_EVERYTHING, _PART = np.ones(_GRID, dtype=bool), rectangle(_GRID, 0.25)


def faults(device: str, dtype: torch.dtype) -> list[str]:
    """Return what is wrong with edits of the tiny shape in fp32 and in `dtype`.

    With every token active an edit must equal the dense one, and an edit with unfused spot steps
    must equal ours. In a lower precision, an edit's error against the fp32 reference may be twice
    that of the reference in the same precision.
    """
    pipe = build(SHAPES["tiny"], device, torch.float32)
    pipe.scheduler = FlowMatchEulerDiscreteScheduler()
    references = {name: reference(pipe) for name, (_, reference) in _PAIRS.items()}
    wrong = []
    for kind in dict.fromkeys((torch.float32, dtype)):
        pipe.to(kind)
        for name, (candidate, reference) in _PAIRS.items():
            bound = FP32_BOUND
            if kind != torch.float32:
                bound = 2 * _relative_error(reference(pipe), references[name])
            error = _relative_error(candidate(pipe), references[name])
            if not error <= bound:  # nan is wrong too
                wrong.append(f"{name}, {kind}: relative error {error:.2g} exceeds {bound:.2g}")
    return wrong


def _dense(pipe: Any) -> torch.Tensor:
    call = arguments(SHAPES["tiny"], pipe.device, pipe.dtype, len(_SIGMAS))
    call |= {"sigmas": _SIGMAS, "guidance_scale": _GUIDANCE}
    tokens, channels = _GRID[0] * _GRID[1], pipe.transformer.config.in_channels
    # drawn in fp32, so that each precision begins with the same noise
    noise = torch.randn(1, tokens, channels, generator=torch.Generator().manual_seed(0))
    call["latents"] = noise.to(pipe.device, pipe.dtype)
    return pipe(**call, output_type="latent").images.float()


def _spot(pipe: Any, mask: np.ndarray = _PART, **options: Any) -> torch.Tensor:
    with spotedit.enable(pipe, **options) as handle:
        handle.set_mask(mask, mode="replace")
        return _dense(pipe)


def _all_active(pipe: Any) -> torch.Tensor:
    return _spot(pipe, _EVERYTHING, condition_cache=False)


def _unfused(pipe: Any) -> torch.Tensor:
    with unfused():
        return _spot(pipe)


def _relative_error(result: torch.Tensor, exact: torch.Tensor) -> float:
    return float((result - exact).norm() / exact.norm())


Edit = Callable[[Any], torch.Tensor]
_PAIRS: dict[str, tuple[Edit, Edit]] = {  # name -> (checked edit, the edit that it must equal)
    "all tokens active": (_all_active, _dense),
    "unfused": (_unfused, _spot),
}
