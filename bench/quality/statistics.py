"""Paired differences of records, with seeded bootstrap intervals of 95%."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..metrics import bootstrap
from .measures import MEASURES

FEWEST = 8  # resamples of fewer say too little
Record = Mapping[str, Any]
Table = Mapping[str, Mapping[str, Record]]  # variant -> seed as text -> record


@dataclass(frozen=True)
class Estimate:
    """A mean, its interval, and how many values it is of; not a number without any."""

    mean: float
    low: float
    high: float
    samples: int


def table(records: Mapping[tuple[str, str], Record]) -> dict[str, dict[str, Record]]:
    """Records that have figures, by variant and seed."""
    found: dict[str, dict[str, Record]] = {}
    for (seed, name), record in records.items():
        found.setdefault(name, {})
        if "error" not in record:
            found[name][seed] = record
    return found


def estimate(values: Sequence[float]) -> Estimate:
    if not values:
        return Estimate(*[float("nan")] * 3, 0)
    return Estimate(*bootstrap(values), len(values))


def mean(records: Mapping[str, Record], figure: str) -> Estimate:
    """Of a figure, over the records that have it."""
    values = [record.get(figure) for record in records.values()]
    return estimate([value for value in values if value is not None])


def paired(ours: Mapping[str, Record], theirs: Mapping[str, Record], figure: str) -> Estimate:
    """Of the difference ours - theirs, over the seeds at which both have the figure."""
    pairs = [(ours[seed].get(figure), theirs[seed].get(figure)) for seed in ours if seed in theirs]
    return estimate([a - b for a, b in pairs if a is not None and b is not None])


def worse(difference: Estimate, figure: str) -> bool:
    """Whether all of the interval lies on the figure's bad side, and it is of enough scenes."""
    if difference.samples < FEWEST:
        return False
    return difference.high < 0 if MEASURES[figure].more else difference.low > 0
