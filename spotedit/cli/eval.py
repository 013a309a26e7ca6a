"""`spotedit eval` compares dense and spot editing on a published benchmark."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path

import torch
from accelerate import PartialState

from ..editor.errors import BadInput, Failure
from ..editor.loading import choose_device, explain_errors, image_to_edit, load, one_thread_for_tiny
from ..evaluation.data import DataSet, Item
from ..evaluation.edits import DENSE
from ..evaluation.fair import check_data
from ..evaluation.networks import CLIP, networks
from ..evaluation.readers import read
from ..evaluation.run import edit_all, settings_of
from ..evaluation.score import read_scores, score_all, write_prompts
from ..evaluation.store import JsonLines
from ..evaluation.table import modes_of, table
from ..evaluation.variants import Variants, check_variants, read_variants
from ..pictures.files import OutputError, make_folder, write_text
from ..pictures.images import check_output
from .commands import EvalOptions
from .options import require_model, spotedit_config

_PATIENCE = timedelta(days=7)  # how long a process may wait for the slowest one


def run(options: EvalOptions) -> None:
    """Edit and measure this process's share of the pictures; the first process writes the table.

    Raises:
        BadInput, Failure: see `spotedit.cli.main`.
    """
    if not options.score_only:
        require_model(options.model)
    call = options.pipeline
    state = PartialState(cpu=call.device == "cpu", timeout=_PATIENCE)
    name = call.device
    if name is None and state.num_processes > 1:
        name = str(state.device)
    device = choose_device(name, call.offload)
    clip = options.clip or CLIP
    with explain_errors(device):
        data = read(options.data, options.pictures)
        if state.is_main_process:
            for key, problem in data.problems:
                print(f"skipped {key}: {problem}", file=sys.stderr)
        variants = read_variants(options.variants, spotedit_config(options.config))
        _make_folder(options.out)
        items = data.items[: options.limit]
        with state.split_between_processes(items) as share:
            if not options.score_only:
                if state.is_main_process:
                    _warn_of_absent(clip)
                _edit(options, data, share, variants, device, state.process_index)
                state.wait_for_everyone()
            rows = JsonLines(options.out, "rows").read()
            check_data(rows.values(), data)
            shows_all = options.score_only and options.variants is None
            modes = modes_of(rows) if shows_all else [DENSE, *variants]
            loaded = networks(device, clip)
            score_all(share, options.out, loaded, modes, state.process_index)
        state.wait_for_everyone()
        if state.is_main_process:
            _report(options, replace(data, items=items), loaded.absent, modes)


def _make_folder(out: Path) -> None:
    try:
        make_folder(out)
        check_output(_table_path(out), force=True, suffixes=(".md",))
    except OutputError as error:
        raise BadInput(f"--out {error}") from error


def _table_path(out: Path) -> Path:
    return out / "table.md"


def _warn_of_absent(clip: str) -> None:
    """Print which metrics will be missing from the table, before hours of edits.

    The networks are freed again, so that the pipeline has all of the device's memory.
    """
    for name, reason in networks(torch.device("cpu"), clip).absent.items():
        print(f"{name} will not be measured: {reason}", file=sys.stderr)


def _edit(
    options: EvalOptions,
    data: DataSet,
    share: Sequence[Item],
    variants: Variants,
    device: torch.device,
    process: int,
) -> None:
    """Load the pipeline and edit. Its memory is free again when this function returns."""
    call, model = options.pipeline, require_model(options.model)
    with one_thread_for_tiny(model, device):
        pipe = load(model, call.dtype, device, call.offload)
        pipe.set_progress_bar_config(disable=True)
        arguments = call.call_arguments()
        settings = settings_of(pipe, model, data, arguments, call.seed, call.offload)
        check_variants(pipe, variants)
        prepare = partial(image_to_edit, pipe, model)
        edit_all(pipe, share, options.out, settings, arguments, variants, prepare, process)


def _report(
    options: EvalOptions, data: DataSet, absent: Mapping[str, str], modes: Sequence[str]
) -> None:
    out = options.out
    rows = JsonLines(out, "rows").read()
    if all("problem" in row for row in rows.values()):
        problems = [row["problem"] for row in rows.values()]
        first = problems[0] if problems else "nothing has been edited"
        raise Failure(f"{out}: no picture is finished: {first}")
    scores, problems = read_scores(out, rows)
    metrics = JsonLines(out, "metrics").read()
    text = table(data, rows, metrics, scores, absent, modes, problems)
    print(text)
    write_text(_table_path(out), text)
    if options.prompts:
        prompts = write_prompts(data.items, out, rows, modes)
        print(f"{prompts}: for a vision-language model, whose scores go to scores.jsonl beside it")
