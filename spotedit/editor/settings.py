"""What an editor is loaded with, as plain data that can be sent to another process."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from ..options.config import SpotEditConfig

MODELS = "tiny (comes with the package), black-forest-labs/FLUX.1-Kontext-dev, or a folder"

DtypeName = Literal["bfloat16", "float16", "float32"]
Offload = Literal["none", "model", "group", "sequential"]


@dataclass(frozen=True, kw_only=True)
class EditorSettings:
    """How the pipeline is loaded and called.

    Attributes:
        model: "tiny", the id of a model on the Hugging Face Hub, or a folder.
        device: device such as "cuda:1". None takes the best one of this machine.
        dtype: data type of the weights. None takes float32 on a CPU and bfloat16 elsewhere.
        offload: how the weights are kept in host memory.
        arguments: arguments of every call of the pipeline, such as `num_inference_steps`.
        config: what `spotedit.enable` gets.
    """

    model: str
    device: str | None = None
    dtype: DtypeName | None = None
    offload: Offload = "none"
    arguments: Mapping[str, Any] = field(default_factory=dict)
    config: SpotEditConfig = field(default_factory=SpotEditConfig)
