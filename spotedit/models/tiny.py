"""The spec of the tiny editor: Kontext's, with TeaCache coefficients for the tiny weights."""

from dataclasses import replace

from ..options.temporal import TeaCache
from .flux import KONTEXT
from .spec import register

register(
    replace(
        KONTEXT,
        pipelines=("TinyKontextPipeline",),
        # The coefficients come from `spotedit calibrate tiny --scenes 12 --also 50`. With this
        # threshold TeaCache computes one step in two to four, and spot edits that use it are well
        # ahead of TeaCache alone (bench.temporal).
        tea=TeaCache(0.05, (18506.39, 0.0, 0.0, 0.46126, 0.00157)),
    )
)
