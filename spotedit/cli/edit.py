"""`spotedit edit` edits one picture by one instruction."""

import inspect
import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

import spotedit

from ..editor.errors import BadInput
from ..editor.loading import choose_device, explain_errors, image_to_edit, load, one_thread_for_tiny
from ..editor.settings import MODELS
from ..judge.mask import as_mask, resized, same_aspect
from ..pictures.files import write_or_fall_back, write_text
from ..pictures.images import check_output, load_image, load_mask, save_image
from ..report import EditReport
from .commands import EditOptions, PictureOptions
from .errors import Unedited, raise_if_any
from .figure import save_figure
from .options import spotedit_config
from .pipelines import check_call_arguments, timed

_WARM_UP_STEPS = 3  # one full step (all tokens), then two spot steps (active tokens only)


@dataclass(frozen=True)
class _Outputs:
    """The files to write. The last three are written only on request."""

    spot: Path
    dense: Path | None
    figure: Path | None
    report: Path | None


@dataclass(frozen=True)
class _DenseEdit:
    """The stock pipeline's edit of the same picture."""

    picture: Image.Image
    seconds: float


@dataclass(frozen=True)
class _Result:
    """The edit with SpotEdit, and the stock pipeline's edit if `--compare` asks for it."""

    picture: Image.Image
    seconds: float
    report: EditReport
    dense: _DenseEdit | None


def run(options: EditOptions) -> None:
    """Check what can be checked before the work, load the model, edit, and write the files.

    Raises:
        BadInput, ImageError, OutputError, Failure, Unedited: see `spotedit.cli.main`.
    """
    model = require_model(options.model)
    outputs = _outputs(options)
    call = options.pipeline
    device = choose_device(call.device, call.offload)
    image = load_image(options.image)
    mask = None if options.mask is None else _load_mask(options.mask, image, options.image)
    with explain_errors(device), one_thread_for_tiny(model, device):
        config = spotedit_config(options.config)
        pipe = load(model, call.dtype, device, call.offload)
        check_call_arguments(pipe, call.call_arguments())
        image = image_to_edit(pipe, model, image)
        if mask is not None and model == "tiny":  # `image_to_edit` has resized the image
            mask = resized(mask, (image.height, image.width))
        result = _edit(options, pipe, config, image, mask)
    problems = _write(options, outputs, image, result)
    raise_if_any(problems)
    if options.fail_if_unchanged and result.report.unedited:
        raise Unedited(f"nothing was edited: {outputs.spot} is the source")


def require_model(model: str | None) -> str:
    """Return the model, or raise `BadInput` if the command line names none."""
    if model is None:
        raise BadInput(f"name a model with --model: {MODELS}")
    return model


def call_options(options: PictureOptions, image: Image.Image) -> dict[str, Any]:
    """Return the arguments of the pipeline's call, without the generator."""
    arguments = options.pipeline.call_arguments()
    return {"image": image, "prompt": options.instruction, **arguments}


def _outputs(options: EditOptions) -> _Outputs:
    """Name the files to write, and raise `OutputError` if one of them cannot be written."""
    spot, report = options.output, options.report
    dense = spot.with_stem(f"{spot.stem}-dense") if options.compare else None
    figure = spot.with_name(f"{spot.stem}-compare.png") if options.compare else None
    for path in (spot, dense, figure):
        if path is not None:
            check_output(path, options.force)
    if report is not None:
        check_output(report, options.force, (".json",))
    return _Outputs(spot, dense, figure, report)


def _load_mask(path: Path, image: Image.Image, image_path: Path) -> Tensor:
    """Load the mask at `path`.

    Raises:
        BadInput: its aspect ratio differs from that of `image`, or its values cannot be a mask's.
    """
    picture = load_mask(path)
    if not same_aspect((picture.height, picture.width), (image.height, image.width)):
        raise BadInput(
            f"{path} is {picture.width} x {picture.height} pixels; expected the aspect ratio "
            f"of {image_path}, {image.width} x {image.height}"
        )
    try:
        return as_mask(picture)
    except ValueError as error:
        raise BadInput(f"{path}: {error}") from error


def _edit(
    options: EditOptions,
    pipe: Any,
    config: spotedit.SpotEditConfig,
    image: Image.Image,
    mask: Tensor | None,
) -> _Result:
    arguments = call_options(options, image)
    seed = options.pipeline.seed

    def spot_edit(**overrides: Any) -> tuple[Image.Image, float, EditReport]:
        with spotedit.enable(pipe, config) as handle:
            handle.set_mask(mask, mode=options.mask_mode)
            picture, seconds = timed(pipe, seed, arguments | overrides)
        assert handle.report is not None  # the call has returned
        return picture, seconds, handle.report

    dense = None
    if options.compare:
        # A short edit warms up for both timings. It also shows the output size of a spot edit, so
        # that the dense edit can have the same size.
        warm_up_picture, _, _ = spot_edit(num_inference_steps=_WARM_UP_STEPS)
        arguments |= _size_arguments(pipe, warm_up_picture)
        dense_picture, dense_seconds = timed(pipe, seed, arguments)
        dense = _DenseEdit(dense_picture, dense_seconds)
    picture, seconds, report = spot_edit()
    return _Result(picture, seconds, report, dense)


def _size_arguments(pipe: Any, picture: Image.Image) -> dict[str, int]:
    """Return the arguments that make the stock pipeline's output as large as `picture`."""
    size = {"height": picture.height, "width": picture.width}
    size["max_area"] = picture.height * picture.width
    parameters = inspect.signature(type(pipe).__call__).parameters
    return {name: value for name, value in size.items() if name in parameters}


def _write(
    options: EditOptions, outputs: _Outputs, image: Image.Image, result: _Result
) -> list[str | None]:
    """Write the files and print the report.

    A file that cannot be written at its path goes to another folder, and its problem says where.

    Returns:
        For each file, why it is not at its path, or None if it is.
    """
    write_picture = partial(save_image, result.picture, force=options.force)
    problem = write_or_fall_back(outputs.spot, write_picture)
    problems = [problem]
    print(result.report.summary())
    label = (
        outputs.spot if problem is None else "spot"
    )  # the path only if the file was written to it
    size = f"{result.picture.width} x {result.picture.height} pixels"
    print(f"{label}: {size}, {result.seconds:.2f} s in all")
    if result.dense and outputs.dense and outputs.figure:
        write_dense = partial(save_image, result.dense.picture, force=options.force)
        problem = write_or_fall_back(outputs.dense, write_dense)
        rows = [(options.instruction, _figure_row(image, result, result.dense))]
        problems += [problem, write_or_fall_back(outputs.figure, partial(save_figure, rows=rows))]
        label = outputs.dense if problem is None else "dense"
        print(
            f"{label}: {result.dense.seconds:.2f} s without skipping, "
            f"{result.dense.seconds / result.seconds:.2f} times as long (one run each, after a "
            "warm-up)"
        )
    if outputs.report:
        text = json.dumps(_report(result), indent=1) + "\n"
        problems.append(write_or_fall_back(outputs.report, partial(write_text, text=text)))
    return problems


def _figure_row(image: Image.Image, result: _Result, dense: _DenseEdit) -> list[Image.Image]:
    """Return a picture for each of `figure.COLUMNS`."""
    region = result.picture
    if result.report.region is not None:
        region = result.report.overlay(result.picture)
    return [image, dense.picture, result.picture, region]


def _report(result: _Result) -> dict[str, Any]:
    """Return the report with the times of both edits, for the file of `--report`."""
    dense_seconds = result.dense.seconds if result.dense else None
    return result.report.to_dict() | {
        "spot_seconds": result.seconds,
        "dense_seconds": dense_seconds,
    }
