"""`spotedit calibrate`: coefficients of TeaCache for a model that has none published."""

import argparse
import json
from collections.abc import Iterator
from functools import partial
from itertools import product
from typing import Any

import torch
from tqdm import tqdm

from ..evaluation.calibrate import calibrate
from ..evaluation.edits import loop_settings, machine
from ..pictures.files import write_somewhere, write_text
from ..pictures.images import check_output, load_image
from .errors import BadInput, fail_for
from .pipelines import call_given, choose_device, explained, fitting_threads, load, native

_FIRST_SEED = 1000  # of the tiny editor's scenes; figures are reported on those from 0


def run(args: argparse.Namespace) -> None:
    """Edit dense, fit, print and write.

    Raises:
        BadInput, ImageError, OutputError, Failure: see `spotedit.cli.main`.
    """
    if len(args.pairs) % 2:
        raise BadInput(f"{args.pairs[-1]}: no instruction; expected PICTURE INSTRUCTION pairs")
    if not args.pairs and args.model != "tiny":
        raise BadInput("no pictures; expected PICTURE INSTRUCTION pairs (tiny has scenes)")
    check_output(args.out, args.force, (".json",))
    pairs = [(load_image(p), i) for p, i in zip(args.pairs[::2], args.pairs[1::2], strict=True)]
    device = choose_device(args.device, args.offload)
    with explained(device), fitting_threads(args.model, device):
        pipe = load(args.model, args.dtype, device, args.offload)
        pipe.set_progress_bar_config(disable=True)
        settings = loop_settings(pipe, call_given(args))
        if args.model == "tiny":
            pairs = [(native(pipe, i), p) for i, p in pairs] or list(_scenes(args.scenes))
        found = calibrate(pipe, _calls(args, pairs))
        row = {
            "coefficients": found.coefficients,
            "r2": found.r2,
            "input_changes": [min(found.inputs), max(found.inputs)],
            "output_changes": [min(found.outputs), max(found.outputs)],
            "pairs_of_steps": len(found.inputs),
            "edits": len(pairs) * (1 + len(args.also)),
            "also_steps": args.also,
            "model": args.model,
            **machine(pipe),
            "settings": {k: v for k, v in settings.items() if k != "negative_prompt"},
        }
    text = json.dumps(row, indent=1) + "\n"
    problem = write_somewhere(args.out, partial(write_text, text=text))
    print(f"TeaCache(coefficients={list(found.coefficients)})")
    print(f"R2 {found.r2:.3f} over {len(found.inputs)} pairs of steps")
    fail_for([problem])
    print(f"{args.out}: the coefficients and where they come from")


def _scenes(number: int) -> Iterator[tuple[Any, str]]:
    from ..tiny.scenes import KINDS, make_scene

    for seed in range(_FIRST_SEED, _FIRST_SEED + number):
        scene = make_scene(seed, kind=KINDS[seed % len(KINDS)])
        yield scene.source_image, scene.instruction


def _calls(args: argparse.Namespace, pairs: list[tuple[Any, str]]) -> Iterator[dict[str, Any]]:
    more = [{}, *({"num_inference_steps": steps} for steps in args.also)]
    edits = list(product(more, enumerate(pairs)))
    for steps, (number, (image, instruction)) in tqdm(edits, desc="dense edits", unit="edit"):
        generator = torch.Generator().manual_seed(args.seed + number)
        given = {"image": image, "prompt": instruction, "generator": generator}
        yield given | {"output_type": "latent"} | call_given(args) | steps
