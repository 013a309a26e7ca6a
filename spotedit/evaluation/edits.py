"""One edit, dense or spot, of a pipeline that is called the same way for both."""

import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import diffusers
import numpy as np
import torch
from PIL import Image

import spotedit

from ..engine import patch
from ..models.spec import spec_for
from ..report import EditReport

MODES = ("dense", "spot")
LOOP = ("num_inference_steps", "guidance_scale", "true_cfg_scale", "negative_prompt")
_WARM_UP_STEPS = 3  # one full step and two spot steps
_FLOOR_STEPS = 2  # one full step, and one in which every token is reused


@dataclass(frozen=True)
class Edit:
    """What one call gave.

    Attributes:
        picture: RGB.
        seconds: text encoding and decoding included.
        forwards: how often the transformer was called, as counted.
        report: of a spot edit; None for a dense one.
    """

    picture: Image.Image
    seconds: float
    forwards: int
    report: EditReport | None


def call_options(
    pipe: Any, image: Image.Image, instruction: str, given: Mapping[str, Any]
) -> dict[str, Any]:
    """Arguments of both modes' calls: the output takes the source's grid in either."""
    options = {"image": image, "prompt": instruction, **given}
    _, arguments = patch.bind(type(pipe), pipe, (), options)
    return options | spec_for(pipe).matched_size(pipe, arguments, "auto")


def loop_settings(pipe: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    """Steps and guidance of a call, with the pipeline's defaults where `given` has none.

    Raises:
        ValueError: the pipeline does not take an option in `given`.
    """
    try:
        _, arguments = patch.bind(type(pipe), pipe, (), given)
    except TypeError as error:
        raise ValueError(f"{type(pipe).__name__}: {error}; leave that option out") from error
    return {name: arguments[name] for name in LOOP if name in arguments}


def machine(pipe: Any) -> dict[str, Any]:
    """What ran an edit: the pipeline's class, scheduler and dtype, the device, versions."""
    device = pipe._execution_device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return {
        "pipeline": type(pipe).__name__,
        "scheduler": _scheduler(pipe.scheduler),
        "dtype": str(pipe.transformer.dtype).removeprefix("torch."),
        "device": name,
        "threads": torch.get_num_threads() if device.type == "cpu" else None,
        "versions": {
            "spotedit": spotedit.__version__,
            "torch": torch.__version__,
            "diffusers": diffusers.__version__,
        },
    }


def _scheduler(scheduler: Any) -> str:
    """Its class, and a hash of its settings."""
    settings = {k: v for k, v in scheduler.config.items() if not k.startswith("_")}
    listing = json.dumps(settings, sort_keys=True, default=str)
    return f"{type(scheduler).__name__} {hashlib.sha256(listing.encode()).hexdigest()[:8]}"


def edit(
    pipe: Any,
    mode: str,
    options: Mapping[str, Any],
    seed: int,
    config: spotedit.SpotEditConfig,
    mask: np.ndarray | None = None,
) -> Edit:
    """Call the stock pipeline ("dense") or the enabled one ("spot") with noise from `seed`.

    Args:
        mask: bool [H, W], where a spot edit regenerates the picture, instead of its judgement.
    """
    forwards = 0

    def count(*_: Any) -> None:
        nonlocal forwards
        forwards += 1

    generator = torch.Generator().manual_seed(seed)
    hook = pipe.transformer.register_forward_hook(count)
    try:
        handle = spotedit.enable(pipe, config) if mode == "spot" else None
        if handle is not None:
            handle.set_mask(mask, mode="replace")
        start = time.perf_counter()
        picture = pipe(**options, generator=generator).images[0]
        seconds = time.perf_counter() - start
    finally:
        spotedit.disable(pipe)
        hook.remove()
    report = None if handle is None else handle.report
    return Edit(picture.convert("RGB"), seconds, forwards, report)


def warm_up(
    pipe: Any, options: Mapping[str, Any], seed: int, config: spotedit.SpotEditConfig
) -> None:
    """Both modes once with few steps, so that what a first call costs falls into no figure."""
    for mode in MODES:
        edit(pipe, mode, {**options, "num_inference_steps": _WARM_UP_STEPS}, seed, config)


def round_trip(pipe: Any, options: Mapping[str, Any], grid: tuple[int, int]) -> Image.Image:
    """The source through the VAE and back, in any family: an edit that reuses every token.

    Args:
        grid: noise tokens (rows, cols) of a spot edit with these options.
    """
    few = {**options, "num_inference_steps": _FLOOR_STEPS}
    nothing = np.zeros(grid, dtype=bool)
    return edit(pipe, "spot", few, 0, spotedit.SpotEditConfig(), nothing).picture
