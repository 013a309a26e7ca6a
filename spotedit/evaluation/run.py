"""The editing loop: every picture dense and spot, resumable, and fair or refused.

A row of `rows-N.jsonl` is one picture in one mode:

    key, mode ("dense" or "spot"), category
    settings   what has to be equal in all rows, see `settings_of`
    size       [width, height] of the output in pixels
    forwards   calls of the transformer, as counted
    seconds    of the call
    r, reason  of a spot edit: `EditReport.mean_ratio` and `reason`; else None
    moved      of a spot edit: the kind of its `EditReport.misalignment`, or None
    sha256     of the picture's file, MODE/KEY.png
    problem    in place of the last six: why there is no picture
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
from .store import Lines, Row, digest

Prepare = Callable[[Image.Image], Image.Image]


def settings_of(
    pipe: Any,
    model: str,
    data: DataSet,
    given: Mapping[str, Any],
    seed: int,
    config: spotedit.SpotEditConfig,
    offload: str,
) -> dict[str, Any]:
    """What dense and spot rows have to share: data, model, loop, seed, machine and versions.

    Raises:
        ValueError: the pipeline does not take an option in `given`.
    """
    settings = {
        "data": data.identity,
        "model": model,
        **machine(pipe),
        **loop_settings(pipe, given),
        "seed": seed,
        "offload": offload,
        "config": asdict(config),
    }
    return json.loads(json.dumps(settings))  # as rows read back hold it


def picture_path(out: Path, key: str, mode: str) -> Path:
    return out / mode / f"{key}.png"


def edit_all(
    pipe: Any,
    items: Sequence[Item],
    out: Path,
    settings: Mapping[str, Any],
    given: Mapping[str, Any],
    config: spotedit.SpotEditConfig,
    prepare: Prepare,
    process: int = 0,
) -> None:
    """Edit what has no row and picture yet, this process's share of the items.

    Where a picture cannot be read or the pipeline refuses it (a `ValueError`), the row says so and
    a later run tries again.

    Args:
        out: folder of the rows and of MODE/KEY.png.
        settings: of `settings_of`; rows that are there already must have the same.
        given: the call's options besides picture and prompt.
        prepare: what is done to a picture before it is edited.
        process: number of this process.

    Raises:
        Unfair: see `check_fair`.
        OutputError: a picture or a row cannot be written; what is finished stays.
    """
    lines = Lines(out, "rows", process)
    done = lines.read()
    check_fair(done.values(), settings)
    for mode in MODES:
        make_folder(out / mode)
    warm = False
    progress = tqdm(items, desc="editing", unit="picture", disable=process != 0)
    for number, item in enumerate(progress):
        # the order alternates, so that a drift of the machine's speed hits both alike
        order = MODES if number % 2 == 0 else MODES[::-1]
        missing = [mode for mode in order if not _finished(out, done.get((item.key, mode)))]
        if not missing:
            continue
        try:
            options = call_options(pipe, prepare(item.load()), item.instruction, given)
            if not warm:
                warm_up(pipe, options, settings["seed"], config)
                warm = True
        except ValueError as error:
            for mode in missing:
                lines.append(_row(item, mode, settings) | {"problem": _line(error)})
            continue
        for mode in missing:
            row = _row(item, mode, settings)
            try:
                row |= _edited(pipe, mode, options, settings["seed"], config, out, item.key)
            except OutputError:
                raise
            except ValueError as error:
                row |= {"problem": _line(error)}
            lines.append(row)


def _edited(
    pipe: Any,
    mode: str,
    options: Mapping[str, Any],
    seed: int,
    config: spotedit.SpotEditConfig,
    out: Path,
    key: str,
) -> Row:
    result = edit(pipe, mode, options, seed, config)
    path = picture_path(out, key, mode)
    save_image(result.picture, path, force=True)
    report = result.report
    return {
        "size": list(result.picture.size),
        "forwards": result.forwards,
        "seconds": result.seconds,
        "r": None if report is None else report.mean_ratio,
        "reason": None if report is None else report.reason,
        "moved": report.misalignment.kind if report and report.misalignment else None,
        "sha256": digest(path),
    }


def _row(item: Item, mode: str, settings: Mapping[str, Any]) -> Row:
    category = item.category
    return {"key": item.key, "mode": mode, "category": category, "settings": dict(settings)}


def _finished(out: Path, row: Row | None) -> bool:
    if row is None or "problem" in row:
        return False
    return picture_path(out, row["key"], row["mode"]).is_file()


def _line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
