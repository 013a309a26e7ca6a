"""Edit with the toy world's editor, with the same functions as `bench.edits`."""

from pathlib import Path

import torch

from spotedit.tiny import TinyKontextPipeline

from ..edits import arguments as arguments

WEIGHTS = Path(__file__).parent / "weights"


def load(device: str = "cpu", dtype: torch.dtype = torch.float32) -> TinyKontextPipeline:
    """Load the toy world's editor without progress bars."""
    pipe = TinyKontextPipeline.from_pretrained(WEIGHTS, dtype=dtype, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(device)
