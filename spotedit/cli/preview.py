"""`spotedit preview` shows what an edit would regenerate."""

from functools import partial

import torch
from PIL import Image

import spotedit

from ..evaluation.edits import loop_settings
from ..pictures.files import write_somewhere
from ..pictures.images import check_output, load_image, save_image
from .edit import call_options, require_model
from .errors import fail_for
from .figure import save_figure
from .options import PreviewOptions, spotedit_config
from .pipelines import choose_device, explain_errors, fit_threads, load, prepared

_COLUMNS = ("source", "draft", "scores, region outlined")


def run(options: PreviewOptions) -> None:
    """Check, load the model, run the first steps, write the figure and the mask.

    Raises:
        BadInput, ImageError, OutputError, Failure: see `spotedit.cli.main`.
    """
    model = require_model(options.model)
    figure = check_output(options.output, options.force, (".png",))
    mask = check_output(figure.with_stem(f"{figure.stem}-mask"), options.force)
    call = options.pipeline
    device = choose_device(call.device, call.offload)
    image = load_image(options.image)
    with explain_errors(device), fit_threads(model, device):
        config = spotedit_config(options.config)
        pipe = load(model, call.dtype, device, call.offload)
        source = prepared(pipe, model, image)
        loop_settings(pipe, call.call_arguments())  # raises if the pipeline lacks an option
        with spotedit.enable(pipe, config) as handle:
            preview = handle.preview(
                **call_options(options, source),
                generator=torch.Generator().manual_seed(call.seed),
            )
    region = Image.fromarray(preview.region).resize(image.size, Image.Resampling.NEAREST)
    region = region.convert("L")
    rows = [(options.instruction, (source, preview.image, preview.heat_map))]
    mask_problem = write_somewhere(mask, partial(save_image, region, force=options.force))
    figure_problem = write_somewhere(figure, partial(save_figure, rows=rows, columns=_COLUMNS))
    print(preview.report.summary())
    if figure_problem is None:
        print(f"{figure}: the draft")
    if mask_problem is None:
        print(f"{mask}: {preview.region.mean():.0%} would be regenerated")
    fail_for([mask_problem, figure_problem])
