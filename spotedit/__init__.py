"""Edit only what needs to be edited: instruction image editing on Diffusion Transformers.

    handle = spotedit.enable(pipe)
    image = pipe(image=source, prompt="add a scarf to the dog").images[0]
    print(handle.report.summary())
    spotedit.disable(pipe)

An implementation of SpotEdit (arXiv 2512.22323) as a wrapper around stock diffusers pipelines.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import tiny as tiny
    from .api import Handle, disable, enable, supported_pipelines
    from .config_file import load_config
    from .engine.record import StepProgress
    from .estimate import estimate
    from .models.spec import Spec, register
    from .options.config import Overrides, SpotEditConfig
    from .options.temporal import TaylorSeer, TeaCache
    from .preview import Preview
    from .report import EditReport, Step

__version__ = "0.1.0"
__all__ = [
    "EditReport",
    "Handle",
    "Overrides",
    "Preview",
    "Spec",
    "SpotEditConfig",
    "Step",
    "StepProgress",
    "TaylorSeer",
    "TeaCache",
    "disable",
    "enable",
    "estimate",
    "load_config",
    "register",
    "supported_pipelines",
]

# imported when first used, so that `spotedit --help` does not wait for PyTorch
_HOME = {
    "EditReport": "report",
    "Overrides": "options.config",
    "Preview": "preview",
    "Spec": "models.spec",
    "SpotEditConfig": "options.config",
    "Step": "report",
    "StepProgress": "engine.record",
    "TaylorSeer": "options.temporal",
    "TeaCache": "options.temporal",
    "estimate": "estimate",
    "load_config": "config_file",
    "register": "models.spec",
}


if not TYPE_CHECKING:  # type checkers would take any name for an attribute

    def __getattr__(name: str) -> Any:
        if name == "tiny":
            return import_module(".tiny", __name__)
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        found = getattr(import_module(f".{_HOME.get(name, 'api')}", __name__), name)
        globals()[name] = found  # a submodule of that name would hide it
        return found


def __dir__() -> list[str]:
    return [*__all__, "__version__", "tiny"]
