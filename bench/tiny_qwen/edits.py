"""Edits with the tiny Qwen editor: what `bench.edits` offers for the Kontext one."""

from typing import Any

import torch

from spotedit.tiny.scenes import Scene

from .. import edits
from . import pipeline
from .pipeline import WEIGHTS as WEIGHTS

GUIDANCE = 1.5
EDIT_DB = {"all": 17.0}  # the target of its edited regions, against the truth


def load(device: str = "cpu", dtype: torch.dtype = torch.float32) -> pipeline.TinyQwenPipeline:
    return pipeline.load(dtype, device)


def arguments(scene: Scene, seed: int, steps: int, guidance: float = GUIDANCE) -> dict[str, Any]:
    """Keyword arguments of the pipeline's call; with a `guidance` of 1, one branch a step."""
    # its pipeline's own default is 4
    return edits.arguments(scene, seed, steps, guidance) | {"true_cfg_scale": guidance}
