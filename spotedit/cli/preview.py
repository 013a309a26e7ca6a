"""`spotedit preview` shows what an edit would regenerate."""

from functools import partial

import torch
from PIL import Image

import spotedit

from ..editor.loading import choose_device, explain_errors, image_to_edit, load, one_thread_for_tiny
from ..pictures.files import write_or_fall_back
from ..pictures.images import check_output, load_image, save_image
from .commands import PreviewOptions
from .edit import call_options
from .errors import raise_if_any
from .figure import save_figure
from .options import require_model, spotedit_config
from .pipelines import check_call_arguments

_COLUMNS = ("source", "draft", "scores, region outlined")


def run(options: PreviewOptions) -> None:
    """Check the options, load the model, run the first steps, write the figure and the mask.

    Raises:
        BadInput, ImageError, OutputError, Failure: see `spotedit.cli.main`.
    """
    model = require_model(options.model)
    figure = check_output(options.output, options.force, (".png",))
    mask = check_output(figure.with_stem(f"{figure.stem}-mask"), options.force)
    call = options.pipeline
    device = choose_device(call.device, call.offload)
    image = load_image(options.image)
    with explain_errors(device), one_thread_for_tiny(model, device):
        config = spotedit_config(options.config)
        pipe = load(model, call.dtype, device, call.offload)
        source = image_to_edit(pipe, model, image)
        check_call_arguments(pipe, call.call_arguments())
        with spotedit.enable(pipe, config) as handle:
            preview = handle.preview(
                **call_options(options, source),
                generator=torch.Generator().manual_seed(call.seed),
            )
    region = Image.fromarray(preview.region).resize(image.size, Image.Resampling.NEAREST)
    region = region.convert("L")
    rows = [(options.instruction, (source, preview.image, preview.heat_map))]
    mask_problem = write_or_fall_back(mask, partial(save_image, region, force=options.force))
    figure_problem = write_or_fall_back(figure, partial(save_figure, rows=rows, columns=_COLUMNS))
    print(preview.report.summary())
    if figure_problem is None:
        print(f"{figure}: the draft")
    if mask_problem is None:
        print(f"{mask}: {preview.region.mean():.0%} would be regenerated")
    raise_if_any([mask_problem, figure_problem])
