"""The tiny editor that ships with the package: Kontext, with values calibrated for its own VAE."""

from dataclasses import replace

from ..temporal import TeaCache
from .flux import KONTEXT
from .spec import register

# chosen on 32 scenes with edits of 2 to 60% (seeds from 1000): up to 0.25 the threshold costs
# nothing, at 0.3 one edit is lost; without dilation a tenth of the edited tokens is; judging more
# often changes nothing
register(
    replace(
        KONTEXT,
        pipelines=("TinyKontextPipeline",),
        thresholds={**KONTEXT.thresholds, "perceptual": 0.25},
        dilation=1,
        judge_every=4,
        reset_fractions=(0.32, 0.61, 0.89),  # to the end, where the published ones stop at 0.62
        # `spotedit calibrate tiny --scenes 12 --also 50`; with the threshold, TeaCache computes one
        # step in two to four, and spot edits with it are well ahead of it alone (bench.temporal)
        tea=TeaCache(0.05, (18506.39, 0.0, 0.0, 0.46126, 0.00157)),
    )
)
