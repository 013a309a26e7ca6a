"""Benchmark rows: one measured figure each, with its parameters and its target."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from spotedit.pictures.images import atomic_write

RESULTS = Path(__file__).parent / "results"
Parameters = Mapping[str, str | int | float]


@dataclass(frozen=True)
class Row:
    """One measured figure.

    Attributes:
        name: what was measured.
        value: the figure, in `unit`; nan if there was nothing to measure.
        unit: such as "ms", "dB", "x" (a ratio of two times) or "share" (0..1).
        low, high: ends of an interval, or None; the notes of the table say which interval.
        samples: number of measurements behind the value.
        at_least, at_most: the target, or None.
        parameters: shapes and settings; each becomes a column of the table.
    """

    name: str
    value: float
    unit: str
    low: float | None = None
    high: float | None = None
    samples: int = 1
    at_least: float | None = None
    at_most: float | None = None
    parameters: Parameters = field(default_factory=dict)

    @classmethod
    def median(
        cls, name: str, values: Sequence[float] | np.ndarray, unit: str, **more: Any
    ) -> "Row":
        """Make a row of the median of `values`, with their 20th and 80th percentiles.

        Without any values the row's value is nan.
        """
        if len(values) == 0:
            return cls(name, math.nan, unit, samples=0, **more)
        low, median, high = np.percentile(values, (20, 50, 80)).tolist()
        return cls(name, median, unit, low, high, len(values), **more)

    @classmethod
    def milliseconds(cls, name: str, seconds: Sequence[float], parameters: Parameters) -> "Row":
        """Make a row of the median of `seconds`, in milliseconds."""
        return cls.median(name, [1000 * value for value in seconds], "ms", parameters=parameters)

    @property
    def met(self) -> bool | None:
        """True if the value reaches its target, False if it does not; None without a target."""
        if self.at_least is None and self.at_most is None:
            return None
        above_minimum = self.at_least is None or self.value >= self.at_least
        below_maximum = self.at_most is None or self.value <= self.at_most
        return above_minimum and below_maximum


def table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Return a markdown table without padding, so that a changed cell changes only its line."""
    cells = [header, ["---"] * len(header), *lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


def markdown(rows: Sequence[Row]) -> str:
    """Return the rows as a table, with a column for every parameter that any of them has."""
    names = list(dict.fromkeys(name for row in rows for name in row.parameters))
    header = ["measured", *names, "value", "unit", "n", "target"]
    lines = []
    for row in rows:
        parameters = [str(row.parameters.get(name, "")) for name in names]
        lines.append([row.name, *parameters, _value(row), row.unit, str(row.samples), _target(row)])
    return table(header, lines)


def _value(row: Row) -> str:
    if math.isnan(row.value):
        return ""
    if row.low is None or row.high is None:
        return f"{row.value:.4g}"
    return f"{row.value:.4g} [{row.low:.4g}, {row.high:.4g}]"


def _target(row: Row) -> str:
    if row.met is None:
        return ""
    bounds = ((">=", row.at_least), ("<=", row.at_most))
    text = " ".join(f"{sign} {bound:g}" for sign, bound in bounds if bound is not None)
    return f"{text}: {'met' if row.met else 'MISSED'}"


def save(
    name: str,
    rows: Sequence[Row],
    environment: Mapping[str, str],
    notes: Sequence[str] = (),
    folder: Path = RESULTS,
) -> str:
    """Write NAME.json and NAME.md into `folder`, each atomically, and return the markdown."""
    folder.mkdir(parents=True, exist_ok=True)
    settings = [f"- {key}: {value}" for key, value in environment.items()]
    text = "\n".join([f"# {name}", "", *notes, "", markdown(rows), "", *settings, ""])
    data = {
        "name": name,
        "notes": list(notes),
        "environment": dict(environment),
        "rows": [_finite(asdict(row) | {"met": row.met}) for row in rows],
    }
    for suffix, content in ((".json", json.dumps(data, indent=1) + "\n"), (".md", text)):
        with atomic_write(folder / f"{name}{suffix}") as temporary:
            temporary.write_text(content, encoding="utf-8")
    return text


def _finite(row: Mapping[str, Any]) -> dict[str, Any]:
    """Replace nan and infinity, which JSON does not have, by None."""
    return {
        key: None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in row.items()
    }
