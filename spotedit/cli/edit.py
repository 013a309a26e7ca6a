"""`spotedit edit`: one picture, one instruction."""

import argparse
import inspect
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

import spotedit

from ..evaluation.edits import loop_settings
from ..images import atomic_write, check_output, load_image, load_mask, save_image
from ..report import EditReport
from . import MODELS
from .errors import BadInput, Unedited
from .figure import save_figure
from .pipelines import call_given, choose_device, explained, fitting_threads, load, native, timed

_WARM_UP_STEPS = 3  # one full step and two spot steps


@dataclass(frozen=True)
class _Outputs:
    spot: Path
    dense: Path | None
    figure: Path | None
    report: Path | None


def run(args: argparse.Namespace) -> None:
    """Check all that can be checked, load the model, edit, write.

    Raises:
        BadInput, ImageError, OutputError, Failure, Unedited: see `spotedit.cli.main`.
    """
    require_model(args)
    outputs = _outputs(args)
    device = choose_device(args.device, args.offload)
    image, mask = load_image(args.image), args.mask and load_mask(args.mask)
    if mask and mask.size != image.size:
        raise BadInput(
            f"{args.mask} is {mask.width} x {mask.height} pixels; expected the size of "
            f"{args.image}, {image.width} x {image.height}"
        )
    with explained(device), fitting_threads(args.model, device):
        config = spotedit.SpotEditConfig(threshold=args.threshold)
        pipe = load(args.model, args.dtype, device, args.offload)
        if args.model == "tiny":
            image, mask = native(pipe, image), mask and native(pipe, mask)
        _edit(args, pipe, config, image, mask, outputs)


def require_model(args: argparse.Namespace) -> None:
    if args.model is None:
        raise BadInput(f"name a model with --model: {MODELS}")


def call_options(args: argparse.Namespace, image: Image.Image) -> dict[str, Any]:
    """The pipeline's arguments, without the generator."""
    return {"image": image, "prompt": args.instruction, **call_given(args)}


def _outputs(args: argparse.Namespace) -> _Outputs:
    out: Path = args.output
    dense = out.with_stem(f"{out.stem}-dense") if args.compare else None
    figure = out.with_name(f"{out.stem}-compare.png") if args.compare else None
    for path in (out, dense, figure):
        if path:
            check_output(path, args.force)
    if args.report:
        check_output(args.report, args.force, (".json",))
    return _Outputs(out, dense, figure, args.report)


def _edit(
    args: argparse.Namespace,
    pipe: Any,
    config: spotedit.SpotEditConfig,
    image: Image.Image,
    mask: Image.Image | None,
    outputs: _Outputs,
) -> None:
    loop_settings(pipe, call_given(args))  # raises for an option that the pipeline does not take
    options = call_options(args, image)

    def spot_edit(**more: Any) -> tuple[Image.Image, float, EditReport]:
        with spotedit.enable(pipe, config) as handle:
            handle.set_mask(mask, mode=args.mask_mode)
            picture, seconds = timed(pipe, args.seed, options | more)
        assert handle.report is not None  # the call has returned
        return picture, seconds, handle.report

    dense, dense_seconds = None, None
    if args.compare:
        warm_up, _, _ = spot_edit(num_inference_steps=_WARM_UP_STEPS)
        options |= _size(pipe, warm_up)
        dense, dense_seconds = timed(pipe, args.seed, options)
    spot, seconds, report = spot_edit()

    save_image(spot, outputs.spot, args.force)
    print(report.summary())
    print(f"{outputs.spot}: {spot.width} x {spot.height} pixels, {seconds:.2f} s in all")
    if dense is not None and dense_seconds is not None and outputs.dense and outputs.figure:
        save_image(dense, outputs.dense, args.force)
        region = spot if report.region is None else report.overlay(spot)
        save_figure(outputs.figure, [(args.instruction, (image, dense, spot, region))])
        print(
            f"{outputs.dense}: {dense_seconds:.2f} s without skipping, "
            f"{dense_seconds / seconds:.2f} times as long (one run each, after a warm-up)"
        )
    if outputs.report:
        measured = {"spot_seconds": seconds, "dense_seconds": dense_seconds}
        with atomic_write(outputs.report) as temporary:
            temporary.write_text(json.dumps(report.to_dict() | measured, indent=1) + "\n")
    if args.fail_if_unchanged and report.unedited:
        raise Unedited(f"nothing was edited: {outputs.spot} is the source")


def _size(pipe: Any, picture: Image.Image) -> dict[str, int]:
    """Arguments that make the stock pipeline's output as large as `picture`."""
    size = {"height": picture.height, "width": picture.width}
    size["max_area"] = picture.height * picture.width
    takes = inspect.signature(type(pipe).__call__).parameters
    return {name: value for name, value in size.items() if name in takes}
