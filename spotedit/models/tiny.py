"""The tiny editor that ships with the package: Kontext, with TeaCache's values for its weights."""

from dataclasses import replace

from ..options.temporal import TeaCache
from .flux import KONTEXT
from .spec import register

register(
    replace(
        KONTEXT,
        pipelines=("TinyKontextPipeline",),
        # `spotedit calibrate tiny --scenes 12 --also 50`; with the threshold, TeaCache computes one
        # step in two to four, and spot edits with it are well ahead of it alone (bench.temporal)
        tea=TeaCache(0.05, (18506.39, 0.0, 0.0, 0.46126, 0.00157)),
    )
)
