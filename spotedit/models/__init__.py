"""The model families. Importing a family's module registers its `spec.Spec`."""

from . import flux as flux
from . import flux2 as flux2
from . import inpaint as inpaint
from . import longcat as longcat
from . import qwen as qwen
from . import tiny as tiny
