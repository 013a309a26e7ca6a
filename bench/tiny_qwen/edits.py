"""Edit with the tiny Qwen editor, with the same functions as `bench.edits`."""

from typing import Any

import torch

from spotedit.tiny.scenes import Scene

from .. import edits
from . import pipeline
from .pipeline import WEIGHTS as WEIGHTS

GUIDANCE = 1.5
EDIT_DB = {"all": 17.0}  # target for the edited region against the truth


def load(device: str = "cpu", dtype: torch.dtype = torch.float32) -> pipeline.TinyQwenPipeline:
    """Load the tiny Qwen editor without progress bars."""
    return pipeline.load(dtype, device)


def arguments(scene: Scene, seed: int, steps: int, guidance: float = GUIDANCE) -> dict[str, Any]:
    """Return the arguments of the pipeline's call; a `guidance` of 1 means no guidance."""
    # always set, since the pipeline's default is 4
    return edits.arguments(scene, seed, steps, guidance) | {"true_cfg_scale": guidance}
