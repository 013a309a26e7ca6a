"""A trained editor small enough for a package, and scenes with a known truth to judge it on."""

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
    """The tiny editor: a FLUX.1-Kontext pipeline trained on `make_scene`'s instructions.

    It reads only files of this package, never the network. Native size 128 px (256 noise and 256
    condition tokens); any multiple of 8 px runs.
    """
    with as_file(files(__package__) / "weights") as folder:
        pipe = TinyKontextPipeline.from_pretrained(folder, dtype=dtype, local_files_only=True)
    return pipe.to(device)
