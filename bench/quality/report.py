"""From records to rows."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from ..rows import Row
from . import gate
from .measures import MEASURES, NETWORKS
from .record import Setting
from .rivals import SETTINGS
from .statistics import Estimate, Record, estimate, mean, paired, table
from .variants import DEFAULT, VARIANTS

KIND_DB = {"recolour": 18.0, "remove": 16.0, "replace": 18.0, "add": 18.0}  # of dense, medians
DIFFERENCE = ", difference to dense"
AGAINST_DEFAULT = ", difference to default"
PAIRED = ("edit_db", "edit_ssim", "edit_features", "edit_lpips", "edit_dists", "still_db")
OWN = ("same_db", "above_floor", "seam_excess", "undone", "recall", "recall_dense", "precision")
SIZES = {
    "active_touched": "active / touched tokens",
    "active_ringed": "active / touched tokens and a ring of one around them",
    "active_needed": "active / tokens that the truth or dense changes, and a ring of one",
}
BANDS = {"below 5%": (0.0, 0.05), "5 to 20%": (0.05, 0.2), "above 20%": (0.2, 1.0)}
RATIO, WORK, SECONDS = "r, spot steps", "work saved", "seconds"
FAILED = "does not run"
SEAM = "seam error, above dense's, low end of the interval"
EDIT_LOW = MEASURES["edit_db"].name + DIFFERENCE + ", low end of the interval"
WORST = {  # figure -> (statistic, percentile) beside its mean
    "recall": (("5th percentile", 5), ("lowest", 0)),
    "recall_dense": (("5th percentile", 5), ("lowest", 0)),
}
# of the default on a split, what the project promises
AT_LEAST = {
    "easy": {"edit_db": -0.1, EDIT_LOW: -0.2, "above_floor": -0.1, "recall": 0.97},
    "hard": {"recall": 0.97, "recall, 5th percentile": 0.8},
}
AT_MOST = {
    "easy": {RATIO: 0.35, SEAM: 0.0, "undone": 0.01},
    "hard": {"active_needed": 1.4, "undone": 0.01},
}


def summarise(
    records: Mapping[tuple[str, str], Record],
    names: Sequence[str],
    targets: Mapping[str, float] = KIND_DB,
    split: str = "easy",
) -> list[Row]:
    """Rows of the dense edits and of every variant beside the one of its loop.

    Args:
        names: of the variants.
        targets: of the dense edits against the truth, in dB by kind of instruction or "all".
        split: whose promises the default is held to.
    """
    found = table(records)
    rows: list[Row] = []
    loops = dict.fromkeys(VARIANTS[name].loop.dense for name in names)
    for loop in loops:
        rows += dense_rows(loop, found[loop], targets)
    for name in names:
        errors = [r["error"] for (_, n), r in records.items() if n == name and "error" in r]
        if errors:
            where = {"method": name, "error": errors[0]}
            rows.append(Row(FAILED, float("nan"), "", samples=len(errors), parameters=where))
        if found[name]:
            rows += _variant(name, found[name], found[VARIANTS[name].loop.dense], split)
    same = [n for n in names if n != DEFAULT and VARIANTS[n].loop == VARIANTS[DEFAULT].loop]
    for name in (n for n in same if DEFAULT in names and VARIANTS[n].config is not None):
        for figure, measure in MEASURES.items():
            difference = paired(found[name], found[DEFAULT], figure)
            rows += _row(difference, measure.name + AGAINST_DEFAULT, measure.unit, name)
    if {DEFAULT, *gate.VARIANTS} <= set(names):
        rows += gate.rows(gate.differences(found))
    return rows


def dense_rows(
    loop: str, records: Mapping[str, Record], targets: Mapping[str, float]
) -> Iterator[Row]:
    kinds = ("all", *KIND_DB) if loop == "dense" else ("all",)
    for kind in kinds:
        values = [r["edit_db"] for r in records.values() if kind in ("all", r["kind"])]
        if values:
            yield Row.median(
                MEASURES["edit_db"].name, values, "dB",
                at_least=targets.get(kind), parameters={"method": loop, "kind": kind},
            )  # fmt: skip
    for figure in ("edit_ssim", "edit_features", "still_db"):
        yield from _row(mean(records, figure), MEASURES[figure].name, MEASURES[figure].unit, loop)
    yield from _row(mean(records, "seconds"), SECONDS, "s", loop)


def _variant(
    name: str, records: Mapping[str, Record], dense: Mapping[str, Record], split: str
) -> Iterator[Row]:
    row = partial(_row, split=split)
    for figure in PAIRED:
        measure = MEASURES[figure]
        found = paired(records, dense, figure)
        yield from row(found, measure.name + DIFFERENCE, measure.unit, name, figure)
        if figure == "edit_db" and name == DEFAULT and found.samples:
            yield _bound(EDIT_LOW, found.low, "dB", found.samples, name, split)
    for figure in OWN:
        yield from row(
            mean(records, figure), MEASURES[figure].name, MEASURES[figure].unit, name, figure
        )
        yield from _worst(name, records, figure, split)
    for figure, title in SIZES.items():
        yield from row(mean(records, figure), title, "x", name, figure)
    yield from row(mean(records, "r"), RATIO, "share", name, RATIO)
    both = [seed for seed in records if seed in dense]
    saved = [1 - records[seed]["work"] / dense[seed]["work"] for seed in both]
    yield from _row(estimate(saved), WORK, "share", name)
    yield from _row(mean(records, "seconds"), SECONDS, "s", name)
    exact = [float(r["exact"]) for r in records.values() if "exact" in r]
    yield from _row(estimate(exact), "reused latents equal the source's bit for bit", "share", name)
    whole = [float("misaligned" in r) for r in records.values() if "r" in r]
    yield from _row(estimate(whole), "taken for a change of the whole frame", "share", name)
    if name == DEFAULT:
        yield from _parts(name, records, dense)
        seam = mean(records, "seam_excess")
        if seam.samples:
            yield _bound(SEAM, seam.low, "/255", seam.samples, name, split)


def _worst(name: str, records: Mapping[str, Record], figure: str, split: str) -> Iterator[Row]:
    """Percentiles of a figure, where a mean would hide failures."""
    known = [record[figure] for record in records.values() if record.get(figure) is not None]
    for statistic, percentile in WORST.get(figure, ()) if known else ():
        value, title = float(np.percentile(known, percentile)), f"{figure}, {statistic}"
        shown = f"{MEASURES[figure].name}, {statistic}"
        yield _bound(shown, value, MEASURES[figure].unit, len(known), name, split, title)


def _bound(
    title: str, value: float, unit: str, samples: int, name: str, split: str, target: str = ""
) -> Row:
    """A row of one number, held to the promise of that name or of its title."""
    goals = [goal[split].get(target or title) for goal in (AT_LEAST, AT_MOST)]
    low, high = goals if name == DEFAULT else (None, None)
    return Row(
        title, value, unit, samples=samples, at_least=low, at_most=high,
        parameters={"method": name},
    )  # fmt: skip


def _parts(name: str, records: Mapping[str, Record], dense: Mapping[str, Record]) -> Iterator[Row]:
    """Of every kind of instruction and of small and large edits."""

    def of(chosen: Callable[[Record], bool]) -> Estimate:
        return paired({s: r for s, r in records.items() if chosen(r)}, dense, "edit_db")

    title = MEASURES["edit_db"].name + DIFFERENCE
    for kind in KIND_DB:
        found = of(lambda r, kind=kind: r["kind"] == kind)
        yield from _row(found, title, "dB", name, where={"kind": kind})
    for band, (low, high) in BANDS.items():
        found = of(lambda r, low=low, high=high: low <= r["area"] < high)
        yield from _row(found, title, "dB", name, where={"area": band})


def _row(
    found: Estimate,
    title: str,
    unit: str,
    method: str,
    target: str = "",
    where: Mapping[str, Any] | None = None,
    split: str = "easy",
) -> Iterator[Row]:
    """One row, or none where nothing was measured."""
    if found.samples:
        own = method == DEFAULT
        yield Row(
            title, found.mean, unit, found.low, found.high, found.samples,
            at_least=AT_LEAST[split].get(target) if own else None,
            at_most=AT_MOST[split].get(target) if own else None,
            parameters={"method": method, **(where or {})},
        )  # fmt: skip


def remarks(
    records: Mapping[tuple[str, str], Record], setting: Setting, names: Sequence[str]
) -> list[str]:
    """What a reader of the rows has to know, in sentences."""
    told = []
    found = table(records)
    absent = [
        NETWORKS[n].upper() for n in NETWORKS if all(r.get(n) is None for r in records.values())
    ]
    if absent:
        told.append(f"{' and '.join(absent)}: weights not present.")
    if setting.thresholds and any(VARIANTS[name].equal_r for name in names):
        each = ", ".join(f"{judge} {value:.3g}" for judge, value in setting.thresholds.items())
        told.append(f"Thresholds of equal r, found on other scenes: {each}.")
    if any(VARIANTS[name].rival for name in names):
        told.append(SETTINGS)
    if {DEFAULT, *gate.VARIANTS} <= set(names):
        told += gate.verdicts(gate.differences(found))
    return told
