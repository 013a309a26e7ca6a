"""`spotedit preview`: what an edit would regenerate, before it is made."""

import argparse
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
from .pipelines import call_given, choose_device, explained, fitting_threads, load, native

_COLUMNS = ("source", "draft", "scores, region outlined")


def run(args: argparse.Namespace) -> None:
    """Check, load the model, run the first steps, write the figure and the mask.

    Raises:
        BadInput, ImageError, OutputError, Failure: see `spotedit.cli.main`.
    """
    require_model(args)
    figure = check_output(args.output, args.force, (".png",))
    mask = check_output(figure.with_stem(f"{figure.stem}-mask"), args.force)
    device = choose_device(args.device, args.offload)
    image = load_image(args.image)
    with explained(device), fitting_threads(args.model, device):
        pipe = load(args.model, args.dtype, device, args.offload)
        source = native(pipe, image) if args.model == "tiny" else image
        loop_settings(pipe, call_given(args))  # raises for an option that the pipeline lacks
        with spotedit.enable(pipe, preset=args.preset, threshold=args.threshold) as handle:
            preview = handle.preview(
                **call_options(args, source),
                generator=torch.Generator().manual_seed(args.seed),
            )
    region = Image.fromarray(preview.region).resize(image.size, Image.Resampling.NEAREST)
    region = region.convert("L")
    rows = [(args.instruction, (source, preview.image, preview.heat_map))]
    mask_problem = write_somewhere(mask, partial(save_image, region, force=args.force))
    figure_problem = write_somewhere(figure, partial(save_figure, rows=rows, columns=_COLUMNS))
    print(preview.report.summary())
    if not figure_problem:
        print(f"{figure}: the draft")
    if not mask_problem:
        print(f"{mask}: {preview.region.mean():.0%} would be regenerated")
    fail_for([mask_problem, figure_problem])
