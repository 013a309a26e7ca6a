"""Committed rows, read back."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..rows import RESULTS


@dataclass(frozen=True)
class Results:
    """Rows of one run, as its JSON file has them."""

    name: str
    rows: Sequence[dict[str, Any]]
    notes: Sequence[str]
    environment: dict[str, str]

    def row(self, name: str, method: str) -> dict[str, Any] | None:
        """The row of a method as a whole, without kind and area."""
        wanted = {"method": method}
        return next((r for r in self.rows if r["name"] == name and r["parameters"] == wanted), None)


def read(name: str, folder: Path = RESULTS) -> Results | None:
    """Of NAME.json, or None where that run has not been made."""
    path = folder / f"{name}.json"
    if not path.is_file():
        return None
    data = json.loads(path.read_text(encoding="utf-8"))
    return Results(name, data["rows"], data["notes"], data["environment"])


def cell(row: dict[str, Any] | None, digits: int, interval: bool = True) -> str:
    """A row's value, with its interval if asked; empty without one."""
    if row is None or row["value"] is None:
        return ""
    text = f"{row['value']:.{digits}f}"
    if not interval or row["low"] is None:
        return text
    return f"{text} [{row['low']:.{digits}f}, {row['high']:.{digits}f}]"


def table(header: Iterable[str], lines: Iterable[Sequence[str]]) -> list[str]:
    header = list(header)
    lines = [header, ["---"] * len(header), *lines]
    return [f"| {' | '.join(line)} |" for line in lines]
