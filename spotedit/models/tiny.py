"""The tiny editor that ships with the package: Kontext, with values calibrated for its own VAE."""

from dataclasses import replace

from .flux import KONTEXT
from .spec import register

register(replace(KONTEXT, pipelines=("TinyKontextPipeline",), judge_every=4))
