"""One specification per model family; see `spec.Spec` and `spec.register`."""

from . import flux as flux
from . import kontext_inpaint as kontext_inpaint
from . import longcat as longcat
from . import qwen as qwen
from . import tiny as tiny
