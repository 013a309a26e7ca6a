"""Random pipelines of every family: pipeline's class name -> `Family`."""

from .family import Family
from .kontext import KONTEXT

FAMILIES: dict[str, Family] = {**KONTEXT}
