"""Edit only what needs to be edited: instruction image editing on Diffusion Transformers.

    handle = spotedit.enable(pipe)
    image = pipe(image=source, prompt="add a scarf to the dog").images[0]
    print(handle.report.summary())
    spotedit.disable(pipe)

An implementation of SpotEdit (arXiv 2512.22323) as a wrapper around stock diffusers pipelines.
"""

from . import models  # noqa: F401, registers the families
from .api import Handle, disable, enable
from .config import SpotEditConfig
from .models.spec import supported_pipelines
from .report import EditReport

__version__ = "0.1.0"
__all__ = ["EditReport", "Handle", "SpotEditConfig", "disable", "enable", "supported_pipelines"]
