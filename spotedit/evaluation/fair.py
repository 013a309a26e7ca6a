"""Only like is compared with like, or nothing is."""

from collections.abc import Iterable, Mapping
from typing import Any

from .data import DataSet
from .store import Row


class Unfair(ValueError):
    """Rows that were not made the same way are not to be compared."""


def check_fair(rows: Iterable[Row], settings: Mapping[str, Any] | None = None) -> None:
    """Refuse rows that differ from `settings`, or from the first one, in anything but the mode.

    Raises:
        Unfair: settings differ, or a picture's two edits ran the transformer a different number
            of times or are of different sizes.
    """
    done: dict[str, Row] = {}
    for row in rows:
        settings = row["settings"] if settings is None else settings
        for name in sorted(settings.keys() | row["settings"].keys()):
            expected, actual = settings.get(name), row["settings"].get(name)
            if expected != actual:
                raise Unfair(
                    f"the {row['mode']} row of {row['key']} was made with {name} = {actual!r}; "
                    f"expected {expected!r}: use another output folder, or the same settings"
                )
        if "problem" not in row:
            first = done.setdefault(row["key"], row)
            same_loop(row["key"], row["mode"], row["forwards"], first["forwards"])
            if first["size"] != row["size"]:
                raise Unfair(
                    f"{row['key']}: {row['size']} pixels in {row['mode']}, {first['size']} in the "
                    "other mode; expected the same size"
                )


def same_loop(key: str, mode: str, forwards: int, other: int) -> None:
    """Raise `Unfair` where a picture's two edits ran the transformer unequally often."""
    if forwards != other:
        raise Unfair(
            f"{key}: the transformer ran {forwards} times in {mode} and {other} times in the "
            "other mode; they are not the same loop"
        )


def check_data(rows: Iterable[Row], data: DataSet) -> None:
    """Raise `Unfair` where rows were made from another data set or another version of its list."""
    for row in rows:
        if row["settings"]["data"] != data.identity:
            raise Unfair(
                f"the {row['mode']} row of {row['key']} was made from {row['settings']['data']}; "
                f"expected {data.identity}: name the data set that this folder belongs to"
            )
