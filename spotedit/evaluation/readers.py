"""Read PIE-Bench, PIE-Bench++ or ImgEdit Basic from a folder on this machine."""

from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

from ..pictures.images import load_image
from . import masks
from .data import (
    DataError,
    DataSet,
    Item,
    Malformed,
    check_key,
    picture_path,
    read_json,
    text,
    unmarked,
)

_EXPECTED = (
    "mapping_file.json (PIE-Bench), parquet files (PIE-Bench++) or basic_edit.json (ImgEdit)"
)


def read(path: Path, pictures: Path | None = None) -> DataSet:
    """Read the data set in the folder `path`. Its files tell which benchmark it is.

    Args:
        path: the folder with the benchmark's list.
        pictures: the folder that the paths in the list start from. None takes the usual one:
            `annotation_images` beside PIE-Bench's list, or ImgEdit's folder itself.

    Raises:
        DataError: the folder has no such list, or the list cannot be read.
    """
    if (path / "mapping_file.json").is_file():
        root = pictures or path / "annotation_images"
        rows = read_json(path / "mapping_file.json").items()
        return collect("PIE-Bench", rows, partial(_pie, root))
    if (path / "basic_edit.json").is_file():
        rows = read_json(path / "basic_edit.json").items()
        return collect("ImgEdit Basic", rows, partial(_imgedit, pictures or path))
    if any(path.rglob("*.parquet")):
        from .parquet import item, rows_of

        return collect("PIE-Bench++", rows_of(path), item)
    raise DataError(f"{path}: no data set; expected a folder with {_EXPECTED}")


def collect(
    name: str, rows: Iterable[tuple[str, Any]], make: Callable[[str, Any], Item]
) -> DataSet:
    """Make an item of every valid row, and list the other rows with their problems.

    Args:
        name: the benchmark's name.
        rows: (key, row) of every row.
        make: a function from key and row to the item; it raises `Malformed` for an invalid row.

    Raises:
        DataError: no row is valid.
    """
    items: dict[str, Item] = {}
    problems: list[tuple[str, str]] = []
    for key, row in rows:
        try:
            if not isinstance(row, dict):
                raise Malformed(f"a {type(row).__name__}; expected an object")
            item = make(key, row)
            if item.key in items:
                raise Malformed("a second row with this key")
            items[item.key] = item
        except Malformed as error:
            problems.append((str(key)[:100], str(error)))
    if not items:
        first = f": {problems[0][0]}: {problems[0][1]}" if problems else ""
        raise DataError(f"{name}: none of {len(problems)} rows can be used{first}")
    return DataSet(name, list(items.values()), problems)


def _pie(root: Path, key: str, row: dict[str, Any]) -> Item:
    kind = row.get("editing_type_id")
    if kind not in {str(i) for i in range(10)}:
        raise Malformed(f'editing_type_id is {kind!r}; expected "0" to "9"')
    text(row, "original_prompt")
    mask, problem = masks.decode(row.get("mask"))
    return Item(
        key=check_key(key),
        category=str(kind),
        instruction=unmarked(text(row, "editing_instruction")),
        load=partial(load_image, picture_path(root, text(row, "image_path"))),
        target=unmarked(text(row, "editing_prompt")),
        mask=mask,
        mask_problem=problem,
    )


def _imgedit(root: Path, key: str, row: dict[str, Any]) -> Item:
    return Item(
        key=check_key(key),
        category=text(row, "edit_type"),
        instruction=text(row, "prompt"),
        load=partial(load_image, picture_path(root, text(row, "id"))),
    )
