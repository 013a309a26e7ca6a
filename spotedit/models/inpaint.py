"""The specs of the inpainting pipelines of FLUX.1-Kontext, FLUX.2 klein and Qwen-Image-Edit.

The output always has the size of `image`. After every scheduler step such a pipeline puts the
noised source back wherever `mask_image` is black, so a token that is wholly black cannot differ
from the source. If the user has set no mask, `mask_image` is therefore used as one, in the mode
"intersect". The black tokens end as in the stock pipeline, whatever the judge would have said.
"""

from dataclasses import replace
from typing import Any

from torch import Tensor

from ..options.choices import Box, Size
from .flux import KONTEXT, source_size
from .flux2 import FLUX2
from .qwen import EDIT
from .spec import WHOLE, Arguments, register


def own_mask(pipe: Any, arguments: Arguments, size: Size) -> Tensor | None:
    """Return `mask_image` as the pipeline itself will see it."""
    height, width = size
    mask_image = arguments.get("mask_image")
    padding = arguments.get("padding_mask_crop")
    if mask_image is None:
        return None
    crop: dict[str, Any] = {}
    if padding is not None:
        region = pipe.mask_processor.get_crop_region(mask_image, width, height, pad=padding)
        crop = {"resize_mode": "fill", "crops_coords": region}
    mask = pipe.mask_processor.preprocess(mask_image, height=height, width=width, **crop)
    return mask[:, 0] > 0.5  # bool [b, H, W]


def uncropped_size(arguments: Arguments, source_index: int) -> Size | None:
    """Return the size of the source, or None if the model does not see the whole of it."""
    is_cropped = arguments.get("padding_mask_crop") is not None
    if is_cropped or source_index > 0:
        return None
    return source_size(arguments, 0)


def uncropped_box(pipe: Any, arguments: Arguments, source_index: int) -> Box | None:
    """Return the whole source, or None if the region lies in a crop or on a reference picture."""
    return None if uncropped_size(arguments, source_index) is None else WHOLE


def kontext_mask(pipe: Any, arguments: Arguments, size: Size) -> Tensor | None:
    return None if _has_other_condition(arguments) else own_mask(pipe, arguments, size)


def kontext_size(arguments: Arguments, source_index: int) -> Size | None:
    if _has_other_condition(arguments):
        raise ValueError(
            "set_mask keeps the condition image, which image_reference replaces; expected no mask "
            "in addition to mask_image: call handle.set_mask(None)"
        )
    return uncropped_size(arguments, source_index)


def kontext_box(pipe: Any, arguments: Arguments, source_index: int) -> Box | None:
    if _has_other_condition(arguments):
        return None
    return uncropped_box(pipe, arguments, source_index)


def _has_other_condition(arguments: Arguments) -> bool:
    """Return whether Kontext's condition is another picture than the one that is edited.

    Then no token matches where the two differ, and only the condition is cached.
    """
    return arguments.get("image_reference") is not None


INPAINTING: dict[str, Any] = {
    "matched_size": lambda pipe, arguments, reference: {},
    "source_size": uncropped_size,
    "source_box": uncropped_box,
    "own_mask": own_mask,
}
KONTEXT_INPAINTING = INPAINTING | {
    "source_size": kontext_size,
    "source_box": kontext_box,
    "own_mask": kontext_mask,
}
register(replace(FLUX2, pipelines=("Flux2KleinInpaintPipeline",), **INPAINTING))
register(replace(EDIT, pipelines=("QwenImageEditInpaintPipeline",), **INPAINTING))
register(replace(KONTEXT, pipelines=("FluxKontextInpaintPipeline",), **KONTEXT_INPAINTING))
# This pipeline edits and inpaints; its `mask_image` is not used as a mask here.
register(
    replace(
        EDIT,
        pipelines=("QwenImageEditModularPipeline",),
        source_size=uncropped_size,
        source_box=uncropped_box,
    )
)
