"""A trained editor that is small enough to ship, and scenes with a known truth to test it on."""

from importlib.resources import as_file, files

import torch

from .pipeline import NATIVE_SIZE, PROMPT_TOKENS, TinyKontextPipeline
from .scenes import KINDS, Scene, heldout_photos, make_scene

__all__ = [
    "KINDS",
    "NATIVE_SIZE",
    "PROMPT_TOKENS",
    "Scene",
    "TinyKontextPipeline",
    "heldout_photos",
    "load",
    "make_scene",
]


def load(
    dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
) -> TinyKontextPipeline:
    """Load the tiny editor: a FLUX.1-Kontext pipeline trained on `make_scene`'s instructions.

    The weights are part of the package; nothing is downloaded. The native size is 128 px (256 noise
    tokens and 256 condition tokens), but any multiple of 8 px runs.
    """
    with as_file(files(__package__) / "weights") as folder:
        pipe = TinyKontextPipeline.from_pretrained(folder, dtype=dtype, local_files_only=True)
    return pipe.to(device)
