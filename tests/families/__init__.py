"""Random pipelines of every family: pipeline's class name and variant -> `Family`."""

from .family import Family
from .kontext import KONTEXT
from .qwen import QWEN

FAMILIES: dict[str, Family] = {**KONTEXT, **QWEN}
