"""`spotedit verify`: does it reproduce here, on these pictures?"""

import argparse
import datetime
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

import spotedit

from ..evaluation.edits import loop_settings, machine
from ..evaluation.verify import Figures, verify
from ..pictures.files import write_somewhere, write_text
from ..pictures.images import check_output, load_image
from .errors import BadInput, fail_for
from .pipelines import call_given, choose_device, explained, fitting_threads, load, native

_COLUMNS = {
    "r": "r", "seconds_dense": "dense s", "seconds_spot": "spot s",
    "background_dense": "background dB, dense", "background_spot": "spot",
    "background_floor": "VAE floor", "background_to_floor": "spot to floor",
    "seam_dense": "seam dB, dense", "seam_spot": "spot", "seam_floor": "VAE floor",
}  # fmt: skip

_REASONS = {
    "reason": "nothing was skipped: ",
    "moved": "the whole frame differs from the source's, no token could be reused: ",
}


def run(args: argparse.Namespace) -> None:
    """Edit, print the table, write the row.

    Raises:
        BadInput, ImageError, OutputError, Failure: see `spotedit.cli.main`.
    """
    if len(args.pairs) % 2:
        raise BadInput(f"{args.pairs[-1]}: no instruction; expected PICTURE INSTRUCTION pairs")
    check_output(args.row, args.force, (".json",))
    pairs = [(load_image(p), i) for p, i in zip(args.pairs[::2], args.pairs[1::2], strict=True)]
    device = choose_device(args.device, args.offload)
    with explained(device), fitting_threads(args.model, device):
        config = spotedit.SpotEditConfig(args.preset, threshold=args.threshold)
        pipe = load(args.model, args.dtype, device, args.offload)
        pipe.set_progress_bar_config(disable=True)
        given = call_given(args)
        settings = loop_settings(pipe, given) | {
            "seed": args.seed, "preset": args.preset, "threshold": args.threshold,
            "offload": args.offload,
        }  # fmt: skip
        figures = []
        for image, instruction in tqdm(pairs, desc="5 edits a picture", unit="picture"):
            prepared = native(pipe, image) if args.model == "tiny" else image
            figures.append(verify(pipe, prepared, instruction, given, args.seed, config))
        row = _row(args.model, pipe, settings, figures)
    print(_table(args.pairs[::2], figures))
    text = json.dumps(row, indent=1) + "\n"
    fail_for([write_somewhere(args.row, partial(write_text, text=text))])
    print(
        f"\n{args.row}: the figures, without pictures, names or instructions. To share them, see "
        "bench/results/community/README.md in the repository"
    )


def _table(names: Sequence[str], figures: Sequence[Figures]) -> str:
    lines = [["picture", *_COLUMNS.values()], ["---"] * (len(_COLUMNS) + 1)]
    for name, found in zip(names, figures, strict=True):
        lines.append([Path(name).name, *(_cell(key, found.get(key)) for key in _COLUMNS)])
    text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    reasons = [
        f"{Path(name).name}: {text}{found[key]}"
        for name, found in zip(names, figures, strict=True)
        for key, text in _REASONS.items()
        if found[key]
    ]
    return "\n".join([text, *reasons])


def _cell(name: str, value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.0%}" if name == "r" else f"{value:.2f}"


def _row(model: str, pipe: Any, settings: Figures, figures: Sequence[Figures]) -> Figures:
    """What may be shared: nothing of the pictures, of the machine only its devices' names."""
    return {
        "date": f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}",
        "model": "a local folder" if Path(model).is_dir() else model,
        **machine(pipe),
        "settings": {k: v for k, v in settings.items() if k != "negative_prompt"},
        "edits": list(figures),
    }
