"""LongCat-Image-Edit: its attention, packing, positions and VAE are FLUX.1's."""

from dataclasses import replace

from ..options.temporal import TeaCache
from .flux import KONTEXT
from .spec import register

register(
    replace(
        KONTEXT,
        pipelines=("LongCatImageEditPipeline",),
        processors=("LongCatImageAttnProcessor",),
        # the output always follows the image, at an area of 1024 * 1024
        matched_size=lambda pipe, arguments, reference: {},
        # of LongCat-Image, from vLLM-Omni (github.com/vllm-project/vllm-omni)
        tea=TeaCache(0.25, (652.598, -424.1615, 84.5526, -4.5923, 0.1694)),
    )
)
