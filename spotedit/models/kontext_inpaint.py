"""FLUX.1-Kontext's inpainting pipeline.

The output always has the size of `image`. After every scheduler step the pipeline puts the noised
source back in everything that is black in `mask_image`, so no token that is black throughout can
differ from the source: where the user has set no mask, that one is taken as theirs ("intersect").
Those tokens end as in the stock pipeline, whatever the judge would have said of them.

With `image_reference` the condition is another picture than the one that is edited. Tokens are then
compared with that one, and where the two differ none match: only the condition is cached.
"""

from dataclasses import replace
from typing import Any

from torch import Tensor

from .flux import KONTEXT, source_size
from .spec import Arguments, Grid, register


def own_mask(pipe: Any, arguments: Arguments, size: Grid) -> Tensor | None:
    """`mask_image` as the pipeline itself will see it."""
    (height, width), pad = size, arguments.get("padding_mask_crop")
    picture, processor = arguments.get("mask_image"), pipe.mask_processor
    if picture is None or arguments.get("image_reference") is not None:
        return None
    how: dict[str, Any] = {}
    if pad is not None:
        crop = processor.get_crop_region(picture, width, height, pad=pad)
        how = {"resize_mode": "fill", "crops_coords": crop}
    return processor.preprocess(picture, height=height, width=width, **how)[:, 0] > 0.5


def mask_size(arguments: Arguments, number: int) -> Grid | None:
    """The source's size, where that is the picture that the model sees."""
    if arguments.get("image_reference") is not None:
        raise ValueError(
            "set_mask keeps the condition image, which image_reference replaces; expected no mask "
            "beside mask_image: call handle.set_mask(None)"
        )
    return source_size(arguments, number) if arguments.get("padding_mask_crop") is None else None


register(
    replace(
        KONTEXT,
        pipelines=("FluxKontextInpaintPipeline",),
        matched_size=lambda pipe, arguments, reference: {},
        source_size=mask_size,
        own_mask=own_mask,
    )
)
