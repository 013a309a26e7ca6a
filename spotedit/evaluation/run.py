"""Edit every picture of a benchmark in every mode. A run that was stopped can be continued.

A row of `rows-N.jsonl` describes one picture in one mode:

    key, category
    mode       "dense" for the stock pipeline, or the name of a configuration of SpotEdit: "spot" if
               there is only one
    settings   what must be equal in all rows, see `settings_of`
    config     the mode's configuration; None for a dense edit
    size       [width, height] of the output in pixels
    forwards   number of calls of the transformer, as counted
    skipped_forwards
               number of calls that a temporal method left out; missing in older rows
    seconds    duration of the call
    r, reason, flops_saved
               the fields of `EditReport`; None for a dense edit, and flops_saved in older rows
    moved      the kind of `EditReport.misalignment`, or None
    sha256     hash of the picture's file, MODE/KEY.png
    problem    why there is no picture; it replaces all fields from `size` on
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm import tqdm

import spotedit

from ..pictures.files import OutputError, make_folder
from ..pictures.images import save_image
from .data import DataSet, Item
from .edits import DENSE, call_options, edit, loop_settings, machine, warm_up
from .fair import check_fair
from .store import JsonLines, Row, digest
from .variants import Variants, recorded

Prepare = Callable[[Image.Image], Image.Image]


def settings_of(
    pipe: Any,
    model: str,
    data: DataSet,
    arguments: Mapping[str, Any],
    seed: int,
    offload: str,
) -> dict[str, Any]:
    """Return what all rows must share: data, model, loop, seed, machine and versions.

    Args:
        arguments: the arguments of the pipeline's call besides picture and prompt.

    Raises:
        ValueError: the pipeline does not take one of `arguments`.
    """
    settings = {
        "data": data.identity,
        "model": model,
        **machine(pipe),
        **loop_settings(pipe, arguments),
        "seed": seed,
        "offload": offload,
    }
    return json.loads(json.dumps(settings))  # equal to the settings of rows that are read back


def picture_path(out: Path, key: str, mode: str) -> Path:
    """Return the path of an edited picture in the folder `out`."""
    return out / mode / f"{key}.png"


def edit_all(
    pipe: Any,
    items: Sequence[Item],
    out: Path,
    settings: Mapping[str, Any],
    arguments: Mapping[str, Any],
    variants: Variants,
    prepare: Prepare,
    process: int = 0,
) -> None:
    """Edit the items that have no row or no picture yet.

    If a picture cannot be read or the pipeline refuses it (with a `ValueError`), the row says so
    and a later run tries again.

    Args:
        items: this process's share of the items.
        out: folder for the rows and for MODE/KEY.png.
        settings: the result of `settings_of`; existing rows must have the same settings.
        arguments: the arguments of the pipeline's call besides picture and prompt.
        variants: the configuration of each mode but "dense".
        prepare: a function that is applied to every picture before it is edited.
        process: index of this process.

    Raises:
        Unfair: existing rows were made in another way, see `check_fair`.
        OutputError: a picture or a row cannot be written; what is finished stays.
    """
    lines = JsonLines(out, "rows", process)
    done = lines.read()
    configs = {mode: recorded(config) for mode, config in variants.items()}
    check_fair(done.values(), settings, configs)
    modes = [DENSE, *variants]
    for mode in modes:
        make_folder(out / mode)
    seed, warm = settings["seed"], set()
    progress = tqdm(items, desc="editing", unit="picture", disable=process != 0)
    for number, item in enumerate(progress):
        # the order alternates, so that a drift of the machine's speed hits all modes alike
        order = modes if number % 2 == 0 else modes[::-1]
        missing = [mode for mode in order if not _is_finished(out, done.get((item.key, mode)))]
        if not missing:
            continue
        rows = {mode: _row(item, mode, settings, configs.get(mode)) for mode in missing}
        try:
            options = call_options(pipe, prepare(item.load()), item.instruction, arguments)
        except ValueError as error:
            for row in rows.values():
                lines.append(row | {"problem": _first_line(error)})
            continue
        for mode, row in rows.items():
            config = variants.get(mode)  # None for the dense mode
            path = picture_path(out, item.key, mode)
            try:
                if mode not in warm:
                    warm_up(pipe, options, seed, config)
                    warm.add(mode)
                result = _edit_one(pipe, options, seed, config, path)
            except OutputError:  # a ValueError, but a full disk ends the run
                raise
            except ValueError as error:
                result = {"problem": _first_line(error)}
            lines.append(row | result)


def _edit_one(
    pipe: Any,
    options: Mapping[str, Any],
    seed: int,
    config: spotedit.SpotEditConfig | None,
    path: Path,
) -> Row:
    """Edit one picture and save it at `path`; return the fields of its row from `size` on."""
    result = edit(pipe, options, seed, config)
    save_image(result.picture, path, force=True)
    report = result.report
    return {
        "size": list(result.picture.size),
        "forwards": result.forwards,
        "skipped_forwards": result.skipped_forwards,
        "seconds": result.seconds,
        "r": None if report is None else report.mean_ratio,
        "reason": None if report is None else report.reason,
        "flops_saved": None if report is None else report.flops_saved,
        "moved": report.misalignment.kind if report and report.misalignment else None,
        "sha256": digest(path),
    }


def _row(
    item: Item, mode: str, settings: Mapping[str, Any], config: Mapping[str, Any] | None
) -> Row:
    """Return the fields of a row before `size`."""
    return {
        "key": item.key,
        "mode": mode,
        "category": item.category,
        "settings": dict(settings),
        "config": config,
    }


def _is_finished(out: Path, row: Row | None) -> bool:
    if row is None or "problem" in row:
        return False
    return picture_path(out, row["key"], row["mode"]).is_file()


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
