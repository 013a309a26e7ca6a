"""Read PIE-Bench++, which has a parquet file for each category. It needs pyarrow."""

from collections.abc import Iterator
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from PIL import Image

from ..pictures.images import decode_image
from . import masks
from .data import INSTALL, DataError, Item, Malformed, check_key, text, unmarked

_TEXTS = ("id", "source_prompt", "target_prompt", "mask")


def rows_of(folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (id, row) for every row of the parquet files below `folder`, without its picture.

    Raises:
        DataError: pyarrow is not installed, or a file is damaged or has another format.
    """
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise DataError(f"parquet files need pyarrow, which is not installed; {INSTALL}") from error
    for path in sorted(folder.rglob("*.parquet")):
        try:
            with ParquetFile(path) as file:
                missing = sorted({"image", *_TEXTS} - set(file.schema_arrow.names))
                if missing:
                    raise DataError(f"{path}: no column {', '.join(missing)}")
                groups = [
                    file.read_row_group(group, columns=list(_TEXTS)).to_pylist()
                    for group in range(file.num_row_groups)
                ]
        except (ArrowException, OSError) as error:
            raise DataError(f"{path}: not readable as parquet ({error})") from error
        for group, rows in enumerate(groups):
            for number, row in enumerate(rows):
                category = path.parent.name if path.parent != folder else path.stem
                location = {"location": (path, group, number), "category": category}
                yield str(row["id"]), row | location


def item(key: str, row: dict[str, Any]) -> Item:
    """Return the item of a row.

    This data set has no instructions, so the editor gets the description of the target.
    """
    text(row, "source_prompt")
    target = unmarked(text(row, "target_prompt"))
    mask, problem = masks.decode(masks.parse(row["mask"]))
    if row["id"] is None:
        raise Malformed("id is missing")
    return Item(
        key=check_key(key),
        category=row["category"],
        instruction=target,
        load=partial(_picture, key, *row["location"]),
        target=target,
        mask=mask,
        mask_problem=problem,
    )


def _picture(key: str, path: Path, group: int, number: int) -> Image.Image:
    value = _pictures(path, group)[number].as_py()
    return decode_image((value or {}).get("bytes") or b"", key)


@lru_cache(maxsize=1)
def _pictures(path: Path, group: int) -> Any:
    """Return the encoded pictures of a row group, which neighbours in the data set share."""
    from pyarrow.parquet import ParquetFile

    with ParquetFile(path) as file:
        return file.read_row_group(group, columns=["image"]).column("image")
