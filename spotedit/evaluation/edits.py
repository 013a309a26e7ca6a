"""Edit a picture dense or spot, with the same call of the pipeline."""

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

DENSE = "dense"  # the mode of the stock pipeline
SPOT = "spot"  # the mode with SpotEdit, if only one configuration is compared
LOOP = ("num_inference_steps", "guidance_scale", "true_cfg_scale", "negative_prompt")
_WARM_UP_STEPS = 3  # one full step and two spot steps
_FLOOR_STEPS = 2  # one full step, and one in which every token is reused


@dataclass(frozen=True)
class Edit:
    """The result of one call.

    Attributes:
        picture: the edited picture, RGB.
        seconds: duration of the call, with text encoding and decoding.
        forwards: number of calls of the transformer, as counted by a hook.
        report: the report of a spot edit; None for a dense one.
    """

    picture: Image.Image
    seconds: float
    forwards: int
    report: EditReport | None

    @property
    def skipped_forwards(self) -> int:
        """Number of calls of the transformer that a temporal method left out."""
        kinds = [] if self.report is None else [step["kind"] for step in self.report.steps]
        num_skipped = kinds.count("skip")
        if num_skipped == 0:
            return 0
        forwards_per_step = self.forwards // (len(kinds) - num_skipped)
        return num_skipped * forwards_per_step


def call_options(
    pipe: Any, image: Image.Image, instruction: str, arguments: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the arguments of the call in both modes.

    They include the size, so that the stock pipeline also puts the output on the source's grid.

    Args:
        arguments: the arguments besides picture and prompt.
    """
    options = {"image": image, "prompt": instruction, **arguments}
    _, bound = patch.bind(type(pipe), pipe, (), options)
    return options | spec_for(pipe).matched_size(pipe, bound, "auto")


def loop_settings(pipe: Any, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the steps and the guidance of a call, with the pipeline's defaults filled in.

    Raises:
        ValueError: the pipeline does not take one of `arguments`.
    """
    try:
        _, bound = patch.bind(type(pipe), pipe, (), arguments)
    except TypeError as error:
        raise ValueError(f"{type(pipe).__name__}: {error}; leave that option out") from error
    return {name: bound[name] for name in LOOP if name in bound}


def machine(pipe: Any) -> dict[str, Any]:
    """Describe what runs the edits: the pipeline, its scheduler and dtype, device and versions."""
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
    """Return the scheduler's class with a hash of its settings."""
    settings = {k: v for k, v in scheduler.config.items() if not k.startswith("_")}
    listing = json.dumps(settings, sort_keys=True, default=str)
    return f"{type(scheduler).__name__} {hashlib.sha256(listing.encode()).hexdigest()[:8]}"


def edit(
    pipe: Any,
    options: Mapping[str, Any],
    seed: int,
    config: spotedit.SpotEditConfig | None,
    mask: np.ndarray | None = None,
) -> Edit:
    """Call the stock pipeline or the enabled one with noise from `seed`.

    Args:
        config: None leaves the pipeline as it is.
        mask: bool [H, W], True where an enabled pipeline regenerates the picture. It replaces the
            judge.
    """
    forwards = 0

    def count(*_: Any) -> None:
        nonlocal forwards
        forwards += 1

    generator = torch.Generator().manual_seed(seed)
    hook = pipe.transformer.register_forward_hook(count)
    try:
        handle = None if config is None else spotedit.enable(pipe, config)
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
    pipe: Any, options: Mapping[str, Any], seed: int, config: spotedit.SpotEditConfig | None
) -> None:
    """Edit once with few steps, so that the cost of a first call is in no figure."""
    edit(pipe, {**options, "num_inference_steps": _WARM_UP_STEPS}, seed, config)


def round_trip(pipe: Any, options: Mapping[str, Any], grid: tuple[int, int]) -> Image.Image:
    """Return the source after encoding and decoding by the VAE.

    It is made by an edit that reuses every token, which works with every family of pipelines.

    Args:
        grid: token grid (rows, cols) of the noise tokens in a spot edit with these options.
    """
    short = {**options, "num_inference_steps": _FLOOR_STEPS}
    empty_mask = np.zeros(grid, dtype=bool)
    return edit(pipe, short, 0, spotedit.SpotEditConfig(), empty_mask).picture
