"""`spotedit edit`: one picture, one instruction."""

import argparse
import inspect
import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

import spotedit

from ..evaluation.edits import loop_settings
from ..judge.mask import as_mask, resized, same_aspect
from ..pictures.files import write_somewhere, write_text
from ..pictures.images import check_output, load_image, load_mask, save_image
from ..report import EditReport
from . import MODELS
from .errors import BadInput, Unedited, fail_for
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
    image = load_image(args.image)
    mask = None if args.mask is None else _mask(args.mask, image, args.image)
    with explained(device), fitting_threads(args.model, device):
        config = spotedit.SpotEditConfig(args.preset, threshold=args.threshold)
        pipe = load(args.model, args.dtype, device, args.offload)
        if args.model == "tiny":
            image = native(pipe, image)
            mask = None if mask is None else resized(mask, (image.height, image.width))
        _edit(args, pipe, config, image, mask, outputs)


def _mask(path: Path, image: Image.Image, name: Path) -> Tensor:
    """The mask in the file `path`, of the aspect of `image`, which errors call `name`."""
    picture = load_mask(path)
    if not same_aspect((picture.height, picture.width), (image.height, image.width)):
        raise BadInput(
            f"{path} is {picture.width} x {picture.height} pixels; expected the aspect of {name}, "
            f"{image.width} x {image.height}"
        )
    try:
        return as_mask(picture)
    except ValueError as error:
        raise BadInput(f"{path}: {error}") from error


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
    mask: Tensor | None,
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

    spot_problem = write_somewhere(outputs.spot, partial(save_image, spot, force=args.force))
    problems = [spot_problem]
    if dense is not None and outputs.dense:
        write_dense = partial(save_image, dense, force=args.force)
        problems.append(write_somewhere(outputs.dense, write_dense))
    print(report.summary())
    size = f"{spot.width} x {spot.height} pixels"
    print(f"{outputs.spot if spot_problem is None else 'spot'}: {size}, {seconds:.2f} s in all")
    if dense is not None and dense_seconds is not None and outputs.figure:
        region = spot if report.region is None else report.overlay(spot)
        rows = [(args.instruction, (image, dense, spot, region))]
        problems.append(write_somewhere(outputs.figure, partial(save_figure, rows=rows)))
        print(
            f"{outputs.dense if problems[1] is None else 'dense'}: {dense_seconds:.2f} s without "
            f"skipping, {dense_seconds / seconds:.2f} times as long (one run each, after a warm-up)"
        )
    if outputs.report:
        measured = {"spot_seconds": seconds, "dense_seconds": dense_seconds}
        text = json.dumps(report.to_dict() | measured, indent=1) + "\n"
        problems.append(write_somewhere(outputs.report, partial(write_text, text=text)))
    fail_for(problems)
    if args.fail_if_unchanged and report.unedited:
        raise Unedited(f"nothing was edited: {outputs.spot} is the source")


def _size(pipe: Any, picture: Image.Image) -> dict[str, int]:
    """Arguments that make the stock pipeline's output as large as `picture`."""
    size = {"height": picture.height, "width": picture.width}
    size["max_area"] = picture.height * picture.width
    takes = inspect.signature(type(pipe).__call__).parameters
    return {name: value for name, value in size.items() if name in takes}
