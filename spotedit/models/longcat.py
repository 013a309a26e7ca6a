"""LongCat-Image-Edit: its attention, packing, positions and VAE are FLUX.1's."""

from dataclasses import replace

from .flux import KONTEXT
from .spec import register

register(
    replace(
        KONTEXT,
        pipelines=("LongCatImageEditPipeline",),
        # the output always follows the image, at an area of 1024 * 1024
        matched_size=lambda pipe, arguments, reference: {},
    )
)
