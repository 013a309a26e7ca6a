"""Read committed rows and format them."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..rows import RESULTS


@dataclass(frozen=True)
class Results:
    """The content of one run's JSON file."""

    name: str
    rows: Sequence[dict[str, Any]]
    notes: Sequence[str]
    environment: dict[str, str]

    def row(self, name: str, method: str) -> dict[str, Any] | None:
        """Return the row over all of a method's scenes, not the rows of a kind or an area."""
        parameters = {"method": method}
        rows = (r for r in self.rows if r["name"] == name and r["parameters"] == parameters)
        return next(rows, None)


def read(name: str, folder: Path = RESULTS) -> Results | None:
    """Return the results in NAME.json, or None if there is no such file."""
    path = folder / f"{name}.json"
    if not path.is_file():
        return None
    data = json.loads(path.read_text(encoding="utf-8"))
    return Results(name, data["rows"], data["notes"], data["environment"])


def cell(row: dict[str, Any] | None, digits: int, interval: bool = True) -> str:
    """Format a row's value, with its interval if there is one; return "" without a value."""
    if row is None or row["value"] is None:
        return ""
    text = f"{row['value']:.{digits}f}"
    if not interval or row["low"] is None:
        return text
    return f"{text} [{row['low']:.{digits}f}, {row['high']:.{digits}f}]"


def table(header: Iterable[str], lines: Iterable[Sequence[str]]) -> list[str]:
    """Return the lines of a markdown table."""
    header = list(header)
    lines = [header, ["---"] * len(header), *lines]
    return [f"| {' | '.join(line)} |" for line in lines]
