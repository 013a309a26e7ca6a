"""Edit one scene with one variant and record the figures."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from types import ModuleType
from typing import Any

import diffusers
import numpy as np
import torch
from torch import nn

import spotedit
from spotedit.evaluation import quality
from spotedit.tiny.scenes import Scene
from spotedit.tiny.world import make_scene

from .. import edits
from ..hard_scenes import hard_scene
from ..timing import call_seconds
from ..tiny_editor import edits as world
from ..tiny_qwen import edits as qwen
from .ablations import ABLATIONS
from .measures import Figures, Truth
from .rivals import applied
from .variants import Variant

EDITORS: Mapping[str, ModuleType] = {"kontext": edits, "qwen": qwen, "world": world}
_PHOTOGRAPHS = {"easy": edits.varied, "hard": hard_scene}
SCENES: Mapping[str, Mapping[str, Callable[[int], Any]]] = {  # editor -> split -> (seed -> scene)
    "kontext": _PHOTOGRAPHS,
    "qwen": _PHOTOGRAPHS,
    "world": {split: partial(make_scene, split=split) for split in ("easy", "hard")},
}
_FLOW = {
    "prediction_type": "flow_prediction",
    "use_flow_sigmas": True,
    "use_dynamic_shifting": False,
}
SCHEDULERS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "shift 3": ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0, "use_dynamic_shifting": False}),
    "Heun": ("FlowMatchHeunDiscreteScheduler", {}),
    "LCM": ("FlowMatchLCMScheduler", {}),
    "UniPC": ("UniPCMultistepScheduler", _FLOW),
    "DPM-Solver++": ("DPMSolverMultistepScheduler", _FLOW),
    "DEIS": ("DEISMultistepScheduler", _FLOW),
}


@dataclass(frozen=True)
class Setting:
    """The settings that all edits of a run share.

    Attributes:
        editor: a key of `EDITORS`.
        steps: number of steps, unless the variant's loop has its own.
        device, dtype: torch's names of them.
        thresholds: judge -> the threshold at which it selects as much as the default judge.
        ratios: MagCache's ratios.
    """

    editor: str = "kontext"
    steps: int = 28
    device: str = "cpu"
    dtype: str = "float32"
    thresholds: Mapping[str, float] = field(default_factory=dict)
    ratios: Sequence[float] = ()

    def load(self) -> Any:
        return EDITORS[self.editor].load(self.device, getattr(torch, self.dtype))

    def arguments(self, scene: Scene, seed: int, variant: Variant) -> dict[str, Any]:
        """Return the arguments of the pipeline's call."""
        loop = variant.loop
        options = {} if loop.guidance is None else {"guidance": loop.guidance}
        steps = self.steps if loop.steps is None else loop.steps
        return EDITORS[self.editor].arguments(scene, seed, steps=steps, **options)

    def config(self, variant: Variant, steps: int) -> dict[str, Any]:
        """Return the arguments of `spotedit.enable`."""
        config = dict(variant.config or {})
        settings = spotedit.SpotEditConfig(**config).settings
        if variant.multiple is not None:
            config["threshold"] = variant.multiple * settings.threshold
        if variant.equal_r:
            config["threshold"] = self.thresholds[settings.judge]
        if variant.resets is not None:
            config["reset_steps"] = [int(fraction * steps + 0.5) for fraction in variant.resets]
        return config


def edit(
    pipe: Any, setting: Setting, variant: Variant, truth: Truth, dense: np.ndarray | None
) -> tuple[np.ndarray, Figures]:
    """Return the edited picture, uint8 [H, W, 3], and its figures.

    Args:
        dense: the dense edit with the same loop; None if this is that edit.

    Raises:
        Exception: whatever the pipeline, the scheduler or a rival raises.
    """
    scene, seed = truth.scene, truth.seed
    arguments = setting.arguments(scene, seed, variant)
    steps = arguments["num_inference_steps"]
    handle = None
    torch.manual_seed(seed)  # for schedulers that draw noise
    with ExitStack() as undo:
        undo.enter_context(_scheduler(pipe, variant.loop.scheduler))
        if variant.ablation is not None:
            undo.enter_context(ABLATIONS[variant.ablation]())
        if variant.rival is not None:
            undo.enter_context(applied(pipe, variant.rival, steps, setting.ratios))
        elif variant.config is not None:
            handle = undo.enter_context(spotedit.enable(pipe, **setting.config(variant, steps)))
            if variant.mask is not None:
                handle.set_mask(scene.mask, mode=variant.mask)
        work = undo.enter_context(counted_work(pipe.transformer))
        trace, extra = undo.enter_context(edits.traced(pipe))
        output, seconds = call_seconds(lambda: pipe(**arguments, **extra), pipe.device)
    picture = np.asarray(output.images[0])
    record: Figures = {"seconds": seconds, "work": work[0]}
    region = None
    if handle is not None and handle.report is not None:
        region = handle.report.region
        record["r"] = handle.report.mean_ratio
        record["reason"] = handle.report.reason
        if handle.report.misalignment is not None:
            record["misaligned"] = True
    if region is not None:
        record["region"] = region.astype(int).tolist()
        reused = torch.from_numpy(~region.ravel())
        record["exact"] = torch.equal(trace.states[-1][:, reused], trace.source[:, reused])
    return picture, record | truth.figures(picture, dense, region)


def paste(
    variant: Variant,
    truth: Truth,
    dense: np.ndarray,
    dense_figures: Figures,
    default_figures: Figures,
) -> Figures:
    """Return the figures of the dense edit with the source pasted outside a region.

    The cost is that of the dense edit.
    """
    if variant.paste == "spot":
        region = np.array(default_figures["region"], dtype=bool)
    else:
        region = truth.touched_and_ring
    inside = quality.pixels(region, truth.size)
    picture = np.where(inside[..., None], dense, truth.scene.source)
    cost = {name: dense_figures[name] for name in ("seconds", "work")}
    return cost | truth.figures(picture, dense, region)


@contextmanager
def counted_work(transformer: nn.Module) -> Iterator[list[int]]:
    """Count the multiplications of the linear layers inside the block, in a list of one number."""
    work = [0]

    def count(layer: nn.Linear, args: tuple) -> None:
        work[0] += args[0].numel() * layer.out_features

    layers = [module for module in transformer.modules() if isinstance(module, nn.Linear)]
    with ExitStack() as undo:
        for layer in layers:
            undo.callback(layer.register_forward_pre_hook(count).remove)
        yield work


@contextmanager
def _scheduler(pipe: Any, name: str | None) -> Iterator[None]:
    """Give the pipeline another scheduler inside the block, unless the name is None."""
    stock = pipe.scheduler
    if name is not None:
        kind, options = SCHEDULERS[name]
        pipe.scheduler = getattr(diffusers, kind).from_config(stock.config, **options)
    try:
        yield
    finally:
        pipe.scheduler = stock
