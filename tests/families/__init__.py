"""Random pipelines of every family: pipeline's class name and variant -> `Family`."""

from .family import Family
from .flux2 import FLUX2
from .kontext import KONTEXT
from .qwen import QWEN

FAMILIES: dict[str, Family] = {**KONTEXT, **FLUX2, **QWEN}
