"""Random pipelines of every family: pipeline's class name and variant -> `Family`."""

from .family import Family
from .flux2 import FLUX2
from .kontext import KONTEXT
from .kontext_inpaint import KONTEXT_INPAINT
from .longcat import LONGCAT
from .qwen import QWEN

FAMILIES: dict[str, Family] = {**KONTEXT, **KONTEXT_INPAINT, **LONGCAT, **QWEN, **FLUX2}
