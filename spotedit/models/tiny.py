"""The tiny editor that ships with the package: Kontext, with values calibrated for its own VAE."""

from dataclasses import replace

from ..temporal import TeaCache
from .flux import KONTEXT
from .spec import register

# at the first judgement of 32 scenes, `python -m bench.convergence` (bench/results): all
# edited tokens selected with these, 0.929 with Kontext's 0.2 and no dilation
register(
    replace(
        KONTEXT,
        pipelines=("TinyKontextPipeline",),
        thresholds={**KONTEXT.thresholds, "perceptual": 0.1},
        dilation=1,
        judge_every=4,
        # `spotedit calibrate tiny --scenes 12 --also 50`; with the threshold, TeaCache computes one
        # step in two to four, and spot edits with it are well ahead of it alone (bench.temporal)
        tea=TeaCache(0.05, (10512.14, 0.0, 0.0, 0.68153, 0.0)),
    )
)
