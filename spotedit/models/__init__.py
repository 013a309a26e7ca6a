"""One specification per model family; see `spec.Spec` and `spec.register`."""

from . import flux as flux
from . import flux2 as flux2
from . import inpaint as inpaint
from . import longcat as longcat
from . import qwen as qwen
from . import tiny as tiny
