"""The spec of LongCat-Image-Edit, whose attention, packing, positions and VAE are FLUX.1's."""

from dataclasses import replace

from ..options.temporal import TeaCache
from .flux import KONTEXT
from .spec import register

register(
    replace(
        KONTEXT,
        pipelines=("LongCatImageEditPipeline",),
        processors=("LongCatImageAttnProcessor",),
        # The pipeline takes no size: the output has the image's aspect and 1024 * 1024 pixels.
        matched_size=lambda pipe, arguments, reference: {},
        # coefficients for LongCat-Image from github.com/vllm-project/vllm-omni
        tea=TeaCache(0.25, (652.598, -424.1615, 84.5526, -4.5923, 0.1694)),
    )
)
