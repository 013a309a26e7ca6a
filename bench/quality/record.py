"""One edit of one scene by one variant, and its record."""

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
SCENES: Mapping[str, Mapping[str, Callable[[int], Any]]] = {  # editor -> split -> of a seed
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
    """What all edits of a run share.

    Attributes:
        editor: of `EDITORS`.
        steps: of loops that name none.
        device, dtype: names.
        thresholds: judge -> the one at which it selects as much as the default judge.
        ratios: of MagCache.
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
        """Of the pipeline's call."""
        loop = variant.loop
        guided = {} if loop.guidance is None else {"guidance": loop.guidance}
        steps = self.steps if loop.steps is None else loop.steps
        return EDITORS[self.editor].arguments(scene, seed, steps=steps, **guided)

    def config(self, variant: Variant, steps: int) -> dict[str, Any]:
        """Of `spotedit.enable`."""
        config = dict(variant.config or {})
        own = spotedit.SpotEditConfig(**config).settings
        if variant.multiple is not None:
            config["threshold"] = variant.multiple * own.threshold
        if variant.equal_r:
            config["threshold"] = self.thresholds[own.judge]
        if variant.resets is not None:
            config["reset_steps"] = [int(fraction * steps + 0.5) for fraction in variant.resets]
        return config


def edit(
    pipe: Any, setting: Setting, variant: Variant, truth: Truth, dense: np.ndarray | None
) -> tuple[np.ndarray, Figures]:
    """The picture, uint8 [H, W, 3], and its figures.

    Args:
        dense: the picture of the same loop without a variant; None: this is it.

    Raises:
        Exception: what the pipeline, the scheduler or a rival raises.
    """
    scene, seed = truth.scene, truth.seed
    given = setting.arguments(scene, seed, variant)
    steps = given["num_inference_steps"]
    handle = None
    torch.manual_seed(seed)  # of schedulers that draw
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
        output, seconds = call_seconds(lambda: pipe(**given, **extra), pipe.device)
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
        kept = torch.from_numpy(~region.ravel())
        record["exact"] = torch.equal(trace.states[-1][:, kept], trace.source[:, kept])
    return picture, record | truth.figures(picture, dense, region)


def paste(
    variant: Variant, truth: Truth, dense: np.ndarray, of_dense: Figures, of_default: Figures
) -> Figures:
    """Figures of the dense picture with the source's pixels outside a region; at dense's cost."""
    spot = variant.paste == "spot"
    region = np.array(of_default["region"], dtype=bool) if spot else truth.ringed
    inside = quality.pixels(region, truth.size)
    picture = np.where(inside[..., None], dense, truth.scene.source)
    cost = {name: of_dense[name] for name in ("seconds", "work")}
    return cost | truth.figures(picture, dense, region)


@contextmanager
def counted_work(transformer: nn.Module) -> Iterator[list[int]]:
    """Multiplications of the linear layers inside the block, in a list of one number."""
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
    stock = pipe.scheduler
    if name is not None:
        kind, options = SCHEDULERS[name]
        pipe.scheduler = getattr(diffusers, kind).from_config(stock.config, **options)
    try:
        yield
    finally:
        pipe.scheduler = stock
