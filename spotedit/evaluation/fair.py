"""Refuse to compare edits that were not made the same way."""

from collections.abc import Iterable, Mapping
from typing import Any

from .data import DataSet
from .edits import DENSE
from .store import Row


class Unfair(ValueError):
    """Raised when rows that were not made the same way would be compared."""


def check_fair(
    rows: Iterable[Row],
    settings: Mapping[str, Any] | None = None,
    configs: Mapping[str, Mapping[str, Any]] | None = None,
) -> None:
    """Refuse rows that differ in anything but the mode, and in what the mode stands for.

    Args:
        rows: rows of `run`.
        settings: the settings that all rows must have; None takes those of the first row.
        configs: the configuration of a mode's rows, as `variants.recorded` returns it. A mode that
            is missing here takes that of its first row.

    Raises:
        Unfair: a row has other settings or another configuration, or the edits of a picture ran the
            transformer a different number of times or have different sizes.
    """
    first_rows: dict[str, Row] = {}
    configs = dict(configs or {})
    for row in rows:
        settings = row["settings"] if settings is None else settings
        _check_equal(row, row["settings"], settings, "use the same settings")
        if row["mode"] != DENSE and "problem" not in row:
            config = configs.setdefault(row["mode"], row["config"])
            _check_equal(row, row["config"], config, "give the changed settings another name")
        if "problem" not in row:
            first = first_rows.setdefault(row["key"], row)
            same_loop(row["key"], row["mode"], _loop_forwards(row), _loop_forwards(first))
            if first["size"] != row["size"]:
                raise Unfair(
                    f"{row['key']}: {row['size']} pixels in {row['mode']}, {first['size']} in "
                    f"{first['mode']}; expected the same size"
                )


def _check_equal(
    row: Row, actual: Mapping[str, Any], expected: Mapping[str, Any], remedy: str
) -> None:
    for name in sorted(expected.keys() | actual.keys()):
        if actual.get(name) != expected.get(name):
            raise Unfair(
                f"the {row['mode']} row of {row['key']} was made with {name} = "
                f"{actual.get(name)!r}; expected {expected.get(name)!r}: use another output "
                f"folder, or {remedy}"
            )


def _loop_forwards(row: Row) -> int:
    """Return the number of forwards in the loop of a row, with those that were skipped."""
    return int(row["forwards"] + row.get("skipped_forwards", 0))


def same_loop(key: str, mode: str, forwards: int, other_forwards: int) -> None:
    """Raise `Unfair` if the loops of a picture's two edits have different numbers of forwards.

    Args:
        key: the picture.
        mode: the mode whose loop has `forwards` forwards; the other mode's has `other_forwards`.
            Forwards that a temporal method skips count too.
    """
    if forwards != other_forwards:
        raise Unfair(
            f"{key}: the transformer ran {forwards} times in {mode} and {other_forwards} times in "
            "the other mode; they are not the same loop"
        )


def check_data(rows: Iterable[Row], data: DataSet) -> None:
    """Raise `Unfair` if rows come from another data set, or from another version of its list."""
    for row in rows:
        if row["settings"]["data"] != data.identity:
            raise Unfair(
                f"the {row['mode']} row of {row['key']} was made from {row['settings']['data']}; "
                f"expected {data.identity}: name the data set that this folder belongs to"
            )
