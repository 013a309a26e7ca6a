"""The inpainting pipelines of FLUX.1-Kontext, FLUX.2 klein and Qwen-Image-Edit.

The output always has the size of `image`. After every scheduler step such a pipeline puts the
noised source back in everything that is black in `mask_image`, so no token that is black
throughout can differ from the source: where the user has set no mask, that one is taken as theirs
("intersect"). Those tokens end as in the stock pipeline, whatever the judge would have said.
"""

from dataclasses import replace
from typing import Any

from torch import Tensor

from ..options.choices import Grid
from .flux import KONTEXT, source_size
from .flux2 import FLUX2
from .qwen import EDIT
from .spec import Arguments, register


def own_mask(pipe: Any, arguments: Arguments, size: Grid) -> Tensor | None:
    """`mask_image` as the pipeline itself will see it."""
    (height, width), pad = size, arguments.get("padding_mask_crop")
    picture, processor = arguments.get("mask_image"), pipe.mask_processor
    if picture is None:
        return None
    how: dict[str, Any] = {}
    if pad is not None:
        crop = processor.get_crop_region(picture, width, height, pad=pad)
        how = {"resize_mode": "fill", "crops_coords": crop}
    return processor.preprocess(picture, height=height, width=width, **how)[:, 0] > 0.5


def shown_size(arguments: Arguments, number: int) -> Grid | None:
    """The source's size, where all of it is what the model sees."""
    cropped = arguments.get("padding_mask_crop") is not None
    return None if cropped or number else source_size(arguments, 0)


def kontext_mask(pipe: Any, arguments: Arguments, size: Grid) -> Tensor | None:
    return None if _replaced(arguments) else own_mask(pipe, arguments, size)


def kontext_size(arguments: Arguments, number: int) -> Grid | None:
    if _replaced(arguments):
        raise ValueError(
            "set_mask keeps the condition image, which image_reference replaces; expected no mask "
            "beside mask_image: call handle.set_mask(None)"
        )
    return shown_size(arguments, number)


def _replaced(arguments: Arguments) -> bool:
    """Kontext's condition is then another picture than the one that is edited: where they differ
    no token matches, and only the condition is cached."""
    return arguments.get("image_reference") is not None


INPAINTING: dict[str, Any] = {
    "matched_size": lambda pipe, arguments, reference: {},
    "source_size": shown_size,
    "own_mask": own_mask,
}
register(replace(FLUX2, pipelines=("Flux2KleinInpaintPipeline",), **INPAINTING))
register(replace(EDIT, pipelines=("QwenImageEditInpaintPipeline",), **INPAINTING))
# edits and inpaints; its `mask_image` does not count as the user's
register(replace(EDIT, pipelines=("QwenImageEditModularPipeline",), source_size=shown_size))
own_source = {"source_size": kontext_size, "own_mask": kontext_mask}
register(replace(KONTEXT, pipelines=("FluxKontextInpaintPipeline",), **INPAINTING | own_source))
