"""A random pipeline of every family, by the class name of the pipeline and the variant."""

from collections.abc import Callable

import pytest

from .family import Family
from .flux2 import FLUX2
from .kontext import KONTEXT
from .kontext_inpaint import KONTEXT_INPAINT
from .longcat import LONGCAT
from .modular import MODULAR
from .qwen import QWEN

FAMILIES: dict[str, Family] = {
    **KONTEXT,
    **KONTEXT_INPAINT,
    **LONGCAT,
    **QWEN,
    **FLUX2,
    **MODULAR,
}

DEFAULT = ["FluxKontextPipeline", "QwenImageEditPipeline"]  # the others share most of their code
MARKS = {name: [] if name in DEFAULT else [pytest.mark.full] for name in FAMILIES}
each_family = pytest.mark.parametrize("name", [pytest.param(n, marks=MARKS[n]) for n in FAMILIES])


def each_family_that(has: Callable[[Family], object]) -> pytest.MarkDecorator:
    """Run a test with every family for which `has` returns something true."""
    names = [pytest.param(n, marks=MARKS[n]) for n, family in FAMILIES.items() if has(family)]
    return pytest.mark.parametrize("name", names)
