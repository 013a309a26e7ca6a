"""`spotedit verify` compares dense and spot editing on your own pictures."""

import datetime
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

import spotedit

from ..editor.errors import BadInput
from ..editor.loading import choose_device, explain_errors, image_to_edit, load, one_thread_for_tiny
from ..evaluation.edits import loop_settings, machine
from ..evaluation.verify import Figures, verify
from ..options.config import changed_fields
from ..pictures.files import write_or_fall_back, write_text
from ..pictures.images import check_output
from .commands import VerifyOptions
from .errors import raise_if_any
from .options import spotedit_config
from .pipelines import load_pairs

_COLUMNS = {
    "r": "r", "seconds_dense": "dense s", "seconds_spot": "spot s",
    "background_dense": "background dB, dense", "background_spot": "spot",
    "background_floor": "VAE floor", "background_to_floor": "spot to floor",
    "seam_dense": "seam dB, dense", "seam_spot": "spot", "seam_floor": "VAE floor",
}  # fmt: skip

_REASONS = {
    "reason": "nothing was skipped: ",
    "moved": "the whole frame differs from the source, so no token could be reused: ",
}


def run(options: VerifyOptions) -> None:
    """Edit each picture in both ways, print the table, and write the row.

    Raises:
        BadInput, ImageError, OutputError, Failure: see `spotedit.cli.main`.
    """
    if not options.pairs:
        raise BadInput("no pictures; expected PICTURE INSTRUCTION pairs")
    check_output(options.row, options.force, (".json",))
    pairs = load_pairs(options.pairs)
    call = options.pipeline
    device = choose_device(call.device, call.offload)
    with explain_errors(device), one_thread_for_tiny(options.model, device):
        config = spotedit_config(options.config)
        pipe = load(options.model, call.dtype, device, call.offload)
        pipe.set_progress_bar_config(disable=True)
        arguments = call.call_arguments()
        settings = loop_settings(pipe, arguments) | _edit_settings(options, config)
        figures = []
        for image, instruction in tqdm(pairs, desc="5 edits a picture", unit="picture"):
            source = image_to_edit(pipe, options.model, image)
            figures.append(verify(pipe, source, instruction, arguments, call.seed, config))
        row = _row(options.model, pipe, settings, figures)
    print(_table(options.pairs[::2], figures))
    text = json.dumps(row, indent=1) + "\n"
    raise_if_any([write_or_fall_back(options.row, partial(write_text, text=text))])
    print(
        f"\n{options.row}: the figures, without pictures, names or instructions. To share them, "
        "see bench/results/community/README.md in the repository"
    )


def _edit_settings(options: VerifyOptions, config: spotedit.SpotEditConfig) -> dict[str, Any]:
    """Return the seed, the offloading, the preset, the threshold and all non-default fields."""
    return {
        "seed": options.pipeline.seed,
        "preset": config.preset,
        "threshold": config.threshold,
        "offload": options.pipeline.offload,
        **changed_fields(config),
    }


def _table(paths: Sequence[str], figures: Sequence[Figures]) -> str:
    """Return a markdown table with a row for every picture; notes say why nothing was skipped."""
    lines = [["picture", *_COLUMNS.values()], ["---"] * (len(_COLUMNS) + 1)]
    notes = []
    for path, values in zip(paths, figures, strict=True):
        name = Path(path).name
        lines.append([name, *(_cell(key, values.get(key)) for key in _COLUMNS)])
        notes += [f"{name}: {text}{values[key]}" for key, text in _REASONS.items() if values[key]]
    return "\n".join([*(f"| {' | '.join(line)} |" for line in lines), *notes])


def _cell(name: str, value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.0%}" if name == "r" else f"{value:.2f}"


def _row(model: str, pipe: Any, settings: Figures, figures: Sequence[Figures]) -> Figures:
    """Return the row that the user may share.

    It says nothing about the pictures, and it names no part of the machine but its devices.
    """
    return {
        "date": f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}",
        "model": "a local folder" if Path(model).is_dir() else model,
        **machine(pipe),
        "settings": {k: v for k, v in settings.items() if k != "negative_prompt"},
        "edits": list(figures),
    }
