"""`spotedit calibrate` fits the coefficients of TeaCache to a model without published ones."""

import json
from collections.abc import Iterator
from functools import partial
from itertools import product
from typing import Any

import torch
from tqdm import tqdm

from ..editor.errors import BadInput
from ..editor.loading import choose_device, explain_errors, image_to_edit, load, one_thread_for_tiny
from ..evaluation.calibrate import calibrate
from ..evaluation.edits import loop_settings, machine
from ..pictures.files import write_or_fall_back, write_text
from ..pictures.images import check_output
from .commands import CalibrateOptions
from .errors import raise_if_any
from .pipelines import load_pairs

_FIRST_SEED = 1000  # results are reported for the scenes from seed 0 on, so fit to other ones


def run(options: CalibrateOptions) -> None:
    """Edit with the stock pipeline, fit the coefficients, print them and write them.

    Raises:
        BadInput, ImageError, OutputError, Failure: see `spotedit.cli.main`.
    """
    if not options.pairs and options.model != "tiny":
        raise BadInput("no pictures; expected PICTURE INSTRUCTION pairs (tiny has scenes)")
    check_output(options.out, options.force, (".json",))
    edits = load_pairs(options.pairs)
    call = options.pipeline
    device = choose_device(call.device, call.offload)
    with explain_errors(device), one_thread_for_tiny(options.model, device):
        pipe = load(options.model, call.dtype, device, call.offload)
        pipe.set_progress_bar_config(disable=True)
        settings = loop_settings(pipe, call.call_arguments())
        edits = [(image_to_edit(pipe, options.model, image), text) for image, text in edits]
        if not edits:
            edits = list(_scenes(options.scenes))
        fit = calibrate(pipe, _calls(options, edits))
        row = {
            "coefficients": fit.coefficients,
            "r2": fit.r2,
            "input_changes": [min(fit.inputs), max(fit.inputs)],
            "output_changes": [min(fit.outputs), max(fit.outputs)],
            "pairs_of_steps": len(fit.inputs),
            "edits": len(edits) * (1 + len(options.also)),
            "also_steps": options.also,
            "model": options.model,
            **machine(pipe),
            "settings": {k: v for k, v in settings.items() if k != "negative_prompt"},
        }
    text = json.dumps(row, indent=1) + "\n"
    problem = write_or_fall_back(options.out, partial(write_text, text=text))
    print(f"TeaCache(coefficients={list(fit.coefficients)})")
    print(f"R2 {fit.r2:.3f} over {len(fit.inputs)} pairs of steps")
    raise_if_any([problem])
    print(f"{options.out}: the coefficients and where they come from")


def _scenes(count: int) -> Iterator[tuple[Any, str]]:
    from ..tiny.scenes import KINDS, make_scene

    for seed in range(_FIRST_SEED, _FIRST_SEED + count):
        scene = make_scene(seed, kind=KINDS[seed % len(KINDS)])
        yield scene.source_image, scene.instruction


def _calls(options: CalibrateOptions, edits: list[tuple[Any, str]]) -> Iterator[dict[str, Any]]:
    """Yield the arguments of one call for every edit and number of steps."""
    arguments = options.pipeline.call_arguments()
    step_counts = [{}, *({"num_inference_steps": steps} for steps in options.also)]
    calls = list(product(step_counts, enumerate(edits)))
    for steps, (number, (image, instruction)) in tqdm(calls, desc="dense edits", unit="edit"):
        generator = torch.Generator().manual_seed(options.pipeline.seed + number)
        edit = {"image": image, "prompt": instruction, "generator": generator}
        yield edit | {"output_type": "latent"} | arguments | steps
