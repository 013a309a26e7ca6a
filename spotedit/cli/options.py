"""Options that several commands share, and how tyro reads them.

Each field is an option: `mask_mode` becomes `--mask-mode`. The string below a field is its help.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, fields, make_dataclass
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, get_args, get_origin

from tyro.conf import OmitArgPrefixes, arg
from tyro.constructors import PrimitiveConstructorSpec

from ..editor.errors import BadInput
from ..editor.settings import MODELS, EditorSettings
from ..options.config import SpotEditConfig
from ..options.temporal import Temporal, temporal_from


def at_least(low: int) -> PrimitiveConstructorSpec[Any]:
    """Return the specification of an option that takes an integer of at least `low`."""

    def integer(text: str) -> int:
        value = int(text)
        if value < low:
            raise ValueError(f"{value} is too small; expected at least {low}")
        return value

    return _one_word_option(integer, "INT")


def _one_word_option(read: Callable[[str], Any], metavar: str) -> PrimitiveConstructorSpec[Any]:
    """Return the specification of an option that takes one word and parses it with `read`."""
    return PrimitiveConstructorSpec(
        nargs=1,
        metavar=metavar,
        instance_from_str=lambda words: read(words[0]),
        is_instance=lambda value: True,
        str_from_instance=lambda value: [str(value)],
    )


def optional_word(metavar: str) -> PrimitiveConstructorSpec[Any]:
    """Return the specification of an option that takes a word, or none, which gives ""."""
    return PrimitiveConstructorSpec(
        nargs=(0, 1),
        metavar=f"[{metavar}]",
        instance_from_str=lambda words: words[0] if words else "",
        is_instance=lambda value: True,
        str_from_instance=lambda value: [str(value)],
    )


def _option_type(annotation: Any) -> Any:
    """Return the type of the option for a field of `SpotEditConfig` with this annotation.

    Callables are left out of a union, because a command line cannot give one.
    """
    if annotation == Temporal | None:
        return Annotated[annotation, _one_word_option(temporal_from, "METHOD")]
    if get_origin(annotation) not in (Union, UnionType):
        return annotation
    members = [member for member in get_args(annotation) if get_origin(member) is not Callable]
    return Union[tuple(members)]  # noqa: UP007


if TYPE_CHECKING:
    ConfigOptions = SpotEditConfig
else:  # the same fields without the checks: `spotedit_config` runs them, where errors are reported
    ConfigOptions = make_dataclass(
        "ConfigOptions",
        [(f.name, _option_type(f.type), field(default=f.default)) for f in fields(SpotEditConfig)],
    )
    ConfigOptions.__doc__ = SpotEditConfig.__doc__


ModelOption = Annotated[str | None, arg(metavar="MODEL", help=f"{MODELS}.")]


def require_model(model: str | None) -> str:
    """Return the model, or raise `BadInput` if neither the command line nor its file names one."""
    if model is None:
        raise BadInput(f"name a model with --model: {MODELS}")
    return model


def spotedit_config(options: ConfigOptions) -> SpotEditConfig:
    """Return the configuration that the command line asks for.

    Raises:
        ValueError: an option is out of range, or two options exclude each other.
    """
    return SpotEditConfig(**vars(options))


@dataclass(kw_only=True)
class FileOptions:
    """The options of a command that takes options from a file."""

    config_file: Annotated[Path | None, arg(name="config", metavar="FILE")] = None
    """TOML or YAML file of options, which those of the command line override."""


@dataclass(kw_only=True)
class PipelineOptions:
    """How the pipeline is loaded and called."""

    steps: Annotated[int | None, at_least(1)] = None
    """Number of steps. None takes the pipeline's default."""
    guidance: float | None = None
    """Guidance scale. None takes the pipeline's default."""
    true_cfg: float | None = None
    """Scale of classifier-free guidance. None takes the pipeline's default."""
    negative_prompt: str | None = None
    """What the picture should not show. None takes the pipeline's default."""
    seed: Annotated[int, at_least(0)] = 0
    """Seed of the noise."""
    device: str | None = None
    """Device such as cuda, cuda:1, mps or cpu. None takes the best one of this machine."""
    dtype: Literal["bfloat16", "float16", "float32"] | None = None
    """Data type of the weights. None takes float32 on a CPU and bfloat16 elsewhere."""
    offload: Literal["none", "model", "group", "sequential"] = "none"
    """How to keep the weights in host memory. Offloading saves GPU memory and takes more time."""

    def call_arguments(self) -> dict[str, Any]:
        """Return the arguments of the pipeline's call that the command line sets."""
        arguments = {
            "num_inference_steps": self.steps,
            "guidance_scale": self.guidance,
            "true_cfg_scale": self.true_cfg,
            "negative_prompt": self.negative_prompt,
        }
        return {name: value for name, value in arguments.items() if value is not None}


@dataclass(kw_only=True)
class PhotoOptions:
    """What becomes of the user's file."""

    keep: Literal["original", "model"] = "original"
    """`original` writes the edited region into your own picture, at its own size, and keeps its
    other pixels. `model` writes the picture as the model made it."""
    detail: Literal["model", "crop"] = "model"
    """`crop` edits every changed part of a large picture again, in a crop of it, so that it is as
    sharp as the picture. It takes another edit for each part."""


@dataclass(kw_only=True)
class SpotOptions(FileOptions):
    """The options of every command that edits pictures with SpotEdit."""

    pipeline: OmitArgPrefixes[PipelineOptions]
    config: OmitArgPrefixes[ConfigOptions]

    def editor_settings(self, model: str | None) -> EditorSettings:
        """Return what an `Editor` of `model` is loaded with.

        Raises:
            BadInput: no model is named, or see `spotedit_config`.
        """
        model = require_model(model)
        try:
            config = spotedit_config(self.config)
        except ValueError as error:
            raise BadInput(str(error)) from error
        return EditorSettings(
            model=model,
            device=self.pipeline.device,
            dtype=self.pipeline.dtype,
            offload=self.pipeline.offload,
            arguments=self.pipeline.call_arguments(),
            config=config,
        )
