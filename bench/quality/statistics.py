"""Estimate means and paired differences of the records' figures, with bootstrap 95% intervals.

The bootstrap is `bench.metrics.bootstrap`; its seed is fixed.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..metrics import bootstrap
from .measures import MEASURES

FEWEST = 8  # samples; an interval from fewer supports no conclusion
Record = Mapping[str, Any]
Table = Mapping[str, Mapping[str, Record]]  # variant -> seed as text -> record


@dataclass(frozen=True)
class Estimate:
    """A mean, the ends of its interval, and the number of samples; all nan without samples."""

    mean: float
    low: float
    high: float
    samples: int


def table(records: Mapping[tuple[str, str], Record]) -> dict[str, dict[str, Record]]:
    """Group the records of edits that ran by variant and seed."""
    by_variant: dict[str, dict[str, Record]] = {}
    for (seed, name), record in records.items():
        by_seed = by_variant.setdefault(name, {})
        if "error" not in record:
            by_seed[seed] = record
    return by_variant


def estimate(values: Sequence[float]) -> Estimate:
    """Estimate the mean of the values."""
    if not values:
        return Estimate(math.nan, math.nan, math.nan, 0)
    return Estimate(*bootstrap(values), len(values))


def mean(records: Mapping[str, Record], figure: str) -> Estimate:
    """Estimate the mean of a figure over the records that have it."""
    values = [record.get(figure) for record in records.values()]
    return estimate([value for value in values if value is not None])


def paired(ours: Mapping[str, Record], theirs: Mapping[str, Record], figure: str) -> Estimate:
    """Estimate the mean of ours - theirs over the seeds for which both have the figure."""
    pairs = [(ours[seed].get(figure), theirs[seed].get(figure)) for seed in ours if seed in theirs]
    return estimate([a - b for a, b in pairs if a is not None and b is not None])


def worse(difference: Estimate, figure: str) -> bool:
    """Return whether the whole interval lies on the figure's bad side, given enough samples."""
    if difference.samples < FEWEST:
        return False
    return difference.high < 0 if MEASURES[figure].higher_is_better else difference.low > 0
