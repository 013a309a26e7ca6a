"""`spotedit edit` edits one picture by one instruction."""

import inspect
import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from ..editor.editor import Edited, Editor
from ..editor.keep import kept_share
from ..editor.loading import explain_errors, one_thread_for_tiny
from ..editor.photo import edit_photo, load_mask_of, write_photo
from ..pictures.files import write_or_fall_back, write_text
from ..pictures.images import OutputError, check_output, load_image, save_image
from .commands import EditOptions, PictureOptions
from .errors import Unedited, raise_if_any
from .figure import save_figure
from .pipelines import timed

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


def run(options: EditOptions) -> None:
    """Check what can be checked before the work, load the model, edit, and write the files.

    Raises:
        BadInput, ImageError, OutputError, Failure, Unedited: see `spotedit.cli.main`.
    """
    settings = options.editor_settings(options.model)
    outputs = _outputs(options)
    image = load_image(options.image)
    mask = None if options.mask is None else load_mask_of(options.mask, image, options.image)
    dense = None
    with Editor(settings) as editor:
        if options.compare:  # a short edit warms up for both timings
            few_steps = {"num_inference_steps": _WARM_UP_STEPS}
            editor.edit(image, options.instruction, mask=mask, arguments=few_steps)
        edited, notes = edit_photo(
            editor,
            options.image,
            options.instruction,
            seed=options.pipeline.seed,
            mask=options.mask,
            mask_mode=options.mask_mode,
            detail=options.photo.detail,
        )
    if options.compare:
        dense = _dense_edit(editor, options, edited)
    problems = _write(options, outputs, image, edited, notes, dense)
    raise_if_any(problems)
    if options.fail_if_unchanged and edited.report.unedited:
        raise Unedited(f"nothing was edited: {outputs.spot} is the source")


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


def _dense_edit(editor: Editor, options: EditOptions, edited: Edited) -> _DenseEdit:
    """Make the same edit with the stock pipeline, at the same size. The editor is closed."""
    arguments = call_options(options, edited.source) | _size_arguments(editor.pipe, edited.picture)
    with explain_errors(editor.device), one_thread_for_tiny(editor.settings.model, editor.device):
        picture, seconds = timed(editor.pipe, options.pipeline.seed, arguments)
    return _DenseEdit(picture, seconds)


def _size_arguments(pipe: Any, picture: Image.Image) -> dict[str, int]:
    """Return the arguments that make the stock pipeline's output as large as `picture`."""
    size = {"height": picture.height, "width": picture.width}
    size["max_area"] = picture.height * picture.width
    parameters = inspect.signature(type(pipe).__call__).parameters
    return {name: value for name, value in size.items() if name in parameters}


def _write(
    options: EditOptions,
    outputs: _Outputs,
    image: Image.Image,
    edited: Edited,
    notes: list[str],
    dense: _DenseEdit | None,
) -> list[str | None]:
    """Write the files and print the report.

    A file that cannot be written at its path goes to another folder, and its problem says where.

    Args:
        image: the original.
        notes: sentences about what could not be done as asked.

    Returns:
        For each file, why it is not at its path, or None if it is.
    """
    written = _Written(options, edited)
    problems = [write_or_fall_back(outputs.spot, written.write), *written.problems]
    print(edited.report.summary())
    for line in (*written.lines(image, problems[0] is None), *notes, *written.notes):
        print(line)
    if dense and outputs.dense and outputs.figure:
        write_dense = partial(save_image, dense.picture, force=options.force)
        problem = write_or_fall_back(outputs.dense, write_dense)
        rows = [(options.instruction, _figure_row(edited, dense))]
        problems += [problem, write_or_fall_back(outputs.figure, partial(save_figure, rows=rows))]
        label = outputs.dense if problem is None else "dense"
        print(
            f"{label}: {dense.seconds:.2f} s without skipping, "
            f"{dense.seconds / edited.seconds:.2f} times as long (one run each, after a warm-up)"
        )
    if outputs.report:
        text = json.dumps(_report(edited, dense), indent=1) + "\n"
        problems.append(write_or_fall_back(outputs.report, partial(write_text, text=text)))
    return problems


class _Written:
    """Writes OUT, and remembers what could not be kept of the original.

    Attributes:
        notes: sentences about what could not be kept.
        problems: why the edit could not be put into the original at all.
    """

    def __init__(self, options: EditOptions, edited: Edited) -> None:
        self.options, self.edited = options, edited
        self.notes: list[str] = []
        self.problems: list[str] = []

    def write(self, path: Path) -> None:
        """Write the edit to `path`: the model's picture if it cannot be put into the original."""
        options = self.options
        self.problems.clear()
        try:
            self.notes = write_photo(
                options.image, self.edited, path, options.photo.keep, options.force
            )
        except OutputError:
            raise
        except Exception as error:  # every codec has its own exceptions
            save_image(self.edited.picture, path, options.force)
            self.problems.append(
                f"{path} is the picture as the model made it, because it could not be put into "
                f"{options.image}: {error}"
            )

    def lines(self, image: Image.Image, is_at_its_path: bool) -> list[str]:
        """Say what OUT is.

        Args:
            image: the original.
            is_at_its_path: whether the file is where the user wants it.
        """
        options, edited = self.options, self.edited
        label = options.output if is_at_its_path else "spot"
        share = 0.0
        if options.photo.keep == "original" and not self.problems:
            share = kept_share(edited)
        width, height = image.size if share else edited.picture.size
        lines = [f"{label}: {width} x {height} pixels, {edited.seconds:.2f} s in all"]
        if share:
            lines.append(f"{share:.0%} of its pixels are those of {options.image}")
        return lines


def _figure_row(edited: Edited, dense: _DenseEdit) -> list[Image.Image]:
    """Return a picture for each of `figure.COLUMNS`."""
    region = edited.picture
    if edited.report.region is not None:
        region = edited.report.overlay(edited.picture)
    return [edited.source, dense.picture, edited.picture, region]


def _report(edited: Edited, dense: _DenseEdit | None) -> dict[str, Any]:
    """Return the report with the times of both edits, for the file of `--report`."""
    return edited.report.to_dict() | {
        "spot_seconds": edited.seconds,
        "dense_seconds": dense.seconds if dense else None,
    }
