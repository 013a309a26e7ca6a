"""Edit every picture of a benchmark dense and spot. A run that was stopped can be continued.

A row of `rows-N.jsonl` describes one picture in one mode:

    key, mode ("dense" or "spot"), category
    settings   what must be equal in all rows, see `settings_of`
    size       [width, height] of the output in pixels
    forwards   number of calls of the transformer, as counted
    skipped_forwards
               number of calls that a temporal method left out; missing in older rows
    seconds    duration of the call
    r, reason  `EditReport.mean_ratio` and `EditReport.reason` of a spot edit; None for a dense one
    moved      the kind of `EditReport.misalignment` of a spot edit, or None
    sha256     hash of the picture's file, MODE/KEY.png
    problem    why there is no picture; it replaces all fields from `size` on
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm import tqdm

import spotedit

from ..pictures.files import OutputError, make_folder
from ..pictures.images import save_image
from .data import DataSet, Item
from .edits import MODES, call_options, edit, loop_settings, machine, warm_up
from .fair import check_fair
from .store import JsonLines, Row, digest

Prepare = Callable[[Image.Image], Image.Image]


def settings_of(
    pipe: Any,
    model: str,
    data: DataSet,
    arguments: Mapping[str, Any],
    seed: int,
    config: spotedit.SpotEditConfig,
    offload: str,
) -> dict[str, Any]:
    """Return what dense and spot rows must share: data, model, loop, seed, machine and versions.

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
        "config": asdict(config),
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
    config: spotedit.SpotEditConfig,
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
        prepare: a function that is applied to every picture before it is edited.
        process: index of this process.

    Raises:
        Unfair: existing rows were made in another way, see `check_fair`.
        OutputError: a picture or a row cannot be written; what is finished stays.
    """
    lines = JsonLines(out, "rows", process)
    done = lines.read()
    check_fair(done.values(), settings)
    for mode in MODES:
        make_folder(out / mode)
    is_warm = False
    progress = tqdm(items, desc="editing", unit="picture", disable=process != 0)
    for number, item in enumerate(progress):
        # the order alternates, so that a drift of the machine's speed hits both alike
        order = MODES if number % 2 == 0 else MODES[::-1]
        missing = [mode for mode in order if not _is_finished(out, done.get((item.key, mode)))]
        if not missing:
            continue
        try:
            options = call_options(pipe, prepare(item.load()), item.instruction, arguments)
            if not is_warm:
                warm_up(pipe, options, settings["seed"], config)
                is_warm = True
        except ValueError as error:
            for mode in missing:
                lines.append(_row(item, mode, settings) | {"problem": _first_line(error)})
            continue
        for mode in missing:
            try:
                result = _edit_one(pipe, mode, options, settings["seed"], config, out, item.key)
            except OutputError:  # a ValueError, but a full disk ends the run
                raise
            except ValueError as error:
                result = {"problem": _first_line(error)}
            lines.append(_row(item, mode, settings) | result)


def _edit_one(
    pipe: Any,
    mode: str,
    options: Mapping[str, Any],
    seed: int,
    config: spotedit.SpotEditConfig,
    out: Path,
    key: str,
) -> Row:
    """Edit one picture in one mode and save it; return the fields of its row from `size` on."""
    result = edit(pipe, mode, options, seed, config)
    path = picture_path(out, key, mode)
    save_image(result.picture, path, force=True)
    report = result.report
    return {
        "size": list(result.picture.size),
        "forwards": result.forwards,
        "skipped_forwards": result.skipped_forwards,
        "seconds": result.seconds,
        "r": None if report is None else report.mean_ratio,
        "reason": None if report is None else report.reason,
        "moved": report.misalignment.kind if report and report.misalignment else None,
        "sha256": digest(path),
    }


def _row(item: Item, mode: str, settings: Mapping[str, Any]) -> Row:
    """Return the fields of a row before `size`."""
    return {
        "key": item.key,
        "mode": mode,
        "category": item.category,
        "settings": dict(settings),
    }


def _is_finished(out: Path, row: Row | None) -> bool:
    if row is None or "problem" in row:
        return False
    return picture_path(out, row["key"], row["mode"]).is_file()


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
