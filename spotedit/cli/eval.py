"""`spotedit eval`: dense against spot on a published benchmark."""

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

from accelerate import PartialState

import spotedit

from ..evaluation.data import DataSet, Item
from ..evaluation.fair import check_data
from ..evaluation.networks import CLIP, networks
from ..evaluation.readers import read
from ..evaluation.run import edit_all, settings_of
from ..evaluation.score import read_scores, score_all, write_prompts
from ..evaluation.store import Lines
from ..evaluation.table import table
from ..pictures.files import OutputError, make_folder, write_text
from ..pictures.images import check_output
from . import MODELS
from .errors import BadInput, Failure
from .pipelines import call_given, choose_device, explained, fitting_threads, load, native

_PATIENCE = timedelta(days=7)  # a process may wait that long for the slowest one


def run(args: argparse.Namespace) -> None:
    """Edit this process's share, measure it, and let the first process write the table.

    Raises:
        BadInput, Failure: see `spotedit.cli.main`.
    """
    if args.model is None and not args.score_only:
        raise BadInput(f"name a model with --model: {MODELS}")
    state = PartialState(cpu=args.device == "cpu", timeout=_PATIENCE)
    name = str(state.device) if args.device is None and state.num_processes > 1 else args.device
    device = choose_device(name, args.offload)
    with explained(device):
        data = read(args.data, args.pictures)
        if state.is_main_process:
            for key, problem in data.problems:
                print(f"skipped {key}: {problem}", file=sys.stderr)
        _make(args)
        items = data.items[: args.limit]
        with state.split_between_processes(items) as share:
            if not args.score_only:
                with fitting_threads(args.model, device):
                    _edit(args, data, share, device, state.process_index)
                state.wait_for_everyone()
            check_data(Lines(args.out, "rows").read().values(), data)
            found = networks(device, args.clip or CLIP)
            score_all(share, args.out, found, state.process_index)
        state.wait_for_everyone()
        if state.is_main_process:
            _report(args, replace(data, items=items), found.absent)


def _make(args: argparse.Namespace) -> None:
    try:
        make_folder(args.out)
        check_output(_table_path(args), force=True, suffixes=(".md",))
    except OutputError as error:
        raise BadInput(f"--out {error}") from error


def _table_path(args: argparse.Namespace) -> Path:
    return args.out / "table.md"


def _edit(
    args: argparse.Namespace, data: DataSet, share: Sequence[Item], device: Any, process: int
) -> None:
    """In a function of its own: the pipeline's memory is free when the networks are loaded."""
    config = spotedit.SpotEditConfig(args.preset, threshold=args.threshold)
    pipe = load(args.model, args.dtype, device, args.offload)
    pipe.set_progress_bar_config(disable=True)
    given = call_given(args)
    settings = settings_of(pipe, args.model, data, given, args.seed, config, args.offload)
    prepare = partial(native, pipe) if args.model == "tiny" else _unchanged
    edit_all(pipe, share, args.out, settings, given, config, prepare, process)


def _unchanged(image: Any) -> Any:
    return image


def _report(args: argparse.Namespace, data: DataSet, absent: Mapping[str, str]) -> None:
    rows = Lines(args.out, "rows").read()
    finished = [row for row in rows.values() if "problem" not in row]
    if not finished:
        first = next((row["problem"] for row in rows.values()), "nothing has been edited")
        raise Failure(f"{args.out}: no picture is finished: {first}")
    scores, problems = read_scores(args.out, rows)
    text = table(data, rows, Lines(args.out, "metrics").read(), scores, absent, problems)
    print(text)
    write_text(_table_path(args), text)
    if args.prompts:
        print(f"{write_prompts(data.items, args.out, rows)}: for a judge; see scores.jsonl")
