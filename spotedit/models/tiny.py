"""The tiny editor that ships with the package: Kontext, with values calibrated for its own VAE."""

from dataclasses import replace

from .flux import KONTEXT
from .spec import register

# `python -m bench.editor --first-seed 2000 --scenes 16`: recall of edited tokens 0.93 at 2.1 active
# tokens a touched one, against 0.84 at 1.0 with Kontext's 0.2 and no dilation
register(
    replace(
        KONTEXT,
        pipelines=("TinyKontextPipeline",),
        thresholds={**KONTEXT.thresholds, "perceptual": 0.1},
        dilation=1,
        judge_every=4,
    )
)
