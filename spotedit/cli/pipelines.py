"""Check and time the calls that a command makes."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL import Image

from ..editor.errors import BadInput
from ..evaluation.edits import loop_settings
from ..pictures.images import load_image


def check_call_arguments(pipe: Any, arguments: Mapping[str, Any]) -> None:
    """Raise ValueError if the pipeline's call does not take one of `arguments`."""
    loop_settings(pipe, arguments)  # raises for an unknown argument


def load_pairs(pairs: Sequence[str]) -> list[tuple[Image.Image, str]]:
    """Load the pictures of PICTURE INSTRUCTION pairs.

    Raises:
        BadInput: the last picture has no instruction.
        ImageError: a picture cannot be read.
    """
    if len(pairs) % 2:
        raise BadInput(f"{pairs[-1]}: no instruction; expected PICTURE INSTRUCTION pairs")
    paths, instructions = pairs[::2], pairs[1::2]
    return [(load_image(path), text) for path, text in zip(paths, instructions, strict=True)]


def timed(pipe: Any, seed: int, options: Mapping[str, Any]) -> tuple[Image.Image, float]:
    """Call the pipeline with `options` and measure the time.

    Returns:
        The first picture, and the seconds of the whole call, which include the encoding of the text
        and the decoding of the picture.
    """
    generator = torch.Generator().manual_seed(seed)
    start = time.perf_counter()
    picture = pipe(**options, generator=generator).images[0]
    return picture, time.perf_counter() - start
