"""Turn the records of edits into rows."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from ..rows import Row
from . import gate
from .measures import MEASURES, NETWORK_OF_MEASURE
from .record import Setting
from .rivals import SETTINGS
from .statistics import Estimate, Record, estimate, mean, paired, table
from .variants import DEFAULT, VARIANTS

# median of the dense edits against the truth, by kind of instruction
KIND_DB = {"recolour": 18.0, "remove": 16.0, "replace": 18.0, "add": 18.0}
DIFFERENCE = ", difference to dense"
AGAINST_DEFAULT = ", difference to default"
PAIRED = ("edit_db", "edit_ssim", "edit_features", "edit_lpips", "edit_dists", "still_db")
UNPAIRED = ("same_db", "above_floor", "seam_excess", "undone", "recall", "recall_dense",
            "precision")  # fmt: skip
SIZES = {
    "active_per_touched": "active / touched tokens",
    "active_per_touched_and_ring": "active / touched tokens and a ring of one around them",
    "active_per_needed": "active / tokens that the truth or dense changes, and a ring of one",
}
BANDS = {"below 5%": (0.0, 0.05), "5 to 20%": (0.05, 0.2), "above 20%": (0.2, 1.0)}
RATIO, WORK, SECONDS = "r, spot steps", "work saved", "seconds"
FAILED = "does not run"
SEAM = "seam error, above dense's, low end of the interval"
EDIT_LOW = MEASURES["edit_db"].name + DIFFERENCE + ", low end of the interval"
LOW_PERCENTILES = {"5th percentile": 5, "lowest": 0}
WITH_LOW_PERCENTILES = ("recall", "recall_dense")
# What the project promises for the default settings, by split.
AT_LEAST = {
    "easy": {"edit_db": -0.1, EDIT_LOW: -0.2, "above_floor": -0.1, "recall": 0.97},
    "hard": {"recall": 0.97, "recall, 5th percentile": 0.8},
}
AT_MOST = {
    "easy": {RATIO: 0.35, SEAM: 0.0, "undone": 0.01},
    "hard": {"active_per_needed": 1.4, "undone": 0.01},
}


def summarise(
    records: Mapping[tuple[str, str], Record],
    names: Sequence[str],
    targets: Mapping[str, float] = KIND_DB,
    split: str = "easy",
) -> list[Row]:
    """Return the rows of the dense edits, of all variants, and of their comparisons.

    Args:
        records: by seed and variant.
        names: the variants to report.
        targets: targets in dB of the dense edits against the truth, by kind or for "all".
        split: selects the promises that the default must keep.
    """
    tables = table(records)
    rows: list[Row] = []
    loops = dict.fromkeys(VARIANTS[name].loop.dense for name in names)
    for loop in loops:
        rows += dense_rows(loop, tables[loop], targets)
    for name in names:
        errors = [r["error"] for (_, n), r in records.items() if n == name and "error" in r]
        if errors:
            where = {"method": name, "error": errors[0]}
            rows.append(Row(FAILED, float("nan"), "", samples=len(errors), parameters=where))
        if tables[name]:
            rows += _variant_rows(name, tables[name], tables[VARIANTS[name].loop.dense], split)
    if DEFAULT in names:
        for name in names:
            if _is_comparable_with_default(name):
                rows += _rows_against_default(name, tables[name], tables[DEFAULT])
    if {DEFAULT, *gate.VARIANTS} <= set(names):
        rows += gate.rows(gate.differences(tables))
    return rows


def dense_rows(
    loop: str, records: Mapping[str, Record], targets: Mapping[str, float]
) -> Iterator[Row]:
    """Yield the rows of the dense edits with one loop."""
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


def _is_comparable_with_default(name: str) -> bool:
    """Return whether a variant edits with spot, in the default's loop, and is not the default."""
    variant = VARIANTS[name]
    has_same_loop = variant.loop == VARIANTS[DEFAULT].loop
    return name != DEFAULT and has_same_loop and variant.config is not None


def _rows_against_default(
    name: str, records: Mapping[str, Record], default: Mapping[str, Record]
) -> Iterator[Row]:
    for figure, measure in MEASURES.items():
        difference = paired(records, default, figure)
        yield from _row(difference, measure.name + AGAINST_DEFAULT, measure.unit, name)


def _variant_rows(
    name: str, records: Mapping[str, Record], dense: Mapping[str, Record], split: str
) -> Iterator[Row]:
    row = partial(_row, split=split)
    for figure in PAIRED:
        measure = MEASURES[figure]
        difference = paired(records, dense, figure)
        yield from row(difference, measure.name + DIFFERENCE, measure.unit, name, figure)
        if figure == "edit_db" and name == DEFAULT and difference.samples:
            yield _bound(EDIT_LOW, difference.low, "dB", difference.samples, name, split)
    for figure in UNPAIRED:
        measure = MEASURES[figure]
        yield from row(mean(records, figure), measure.name, measure.unit, name, figure)
        if figure in WITH_LOW_PERCENTILES:
            yield from _low_percentiles(name, records, figure, split)
    for figure, title in SIZES.items():
        yield from row(mean(records, figure), title, "x", name, figure)
    yield from row(mean(records, "r"), RATIO, "share", name, RATIO)
    seeds = [seed for seed in records if seed in dense]
    saved = [1 - records[seed]["work"] / dense[seed]["work"] for seed in seeds]
    yield from _row(estimate(saved), WORK, "share", name)
    yield from _row(mean(records, "seconds"), SECONDS, "s", name)
    exact = [float(r["exact"]) for r in records.values() if "exact" in r]
    yield from _row(estimate(exact), "reused latents equal the source's bit for bit", "share", name)
    whole = [float("misaligned" in r) for r in records.values() if "r" in r]
    yield from _row(estimate(whole), "taken for a change of the whole frame", "share", name)
    if name == DEFAULT:
        yield from _rows_by_kind_and_area(name, records, dense)
        seam = mean(records, "seam_excess")
        if seam.samples:
            yield _bound(SEAM, seam.low, "/255", seam.samples, name, split)


def _low_percentiles(
    name: str, records: Mapping[str, Record], figure: str, split: str
) -> Iterator[Row]:
    """Yield low percentiles of a figure, since a mean would hide single failures."""
    values = [record[figure] for record in records.values() if record.get(figure) is not None]
    if not values:
        return
    measure = MEASURES[figure]
    for statistic, percentile in LOW_PERCENTILES.items():
        value, target = float(np.percentile(values, percentile)), f"{figure}, {statistic}"
        title = f"{measure.name}, {statistic}"
        yield _bound(title, value, measure.unit, len(values), name, split, target)


def _bound(
    title: str, value: float, unit: str, samples: int, name: str, split: str, target: str = ""
) -> Row:
    """Return the row of a single number; `target` names its promise if the title does not."""
    is_default = name == DEFAULT
    return Row(
        title, value, unit, samples=samples,
        at_least=AT_LEAST[split].get(target or title) if is_default else None,
        at_most=AT_MOST[split].get(target or title) if is_default else None,
        parameters={"method": name},
    )  # fmt: skip


def _rows_by_kind_and_area(
    name: str, records: Mapping[str, Record], dense: Mapping[str, Record]
) -> Iterator[Row]:
    """Yield the difference to dense for each kind of instruction and each size of edit."""

    def row(parameter: str, value: str, is_member: Callable[[Record], bool]) -> Iterator[Row]:
        members = {seed: record for seed, record in records.items() if is_member(record)}
        difference = paired(members, dense, "edit_db")
        return _row(difference, title, "dB", name, where={parameter: value})

    title = MEASURES["edit_db"].name + DIFFERENCE
    for kind in KIND_DB:
        yield from row("kind", kind, lambda r, kind=kind: r["kind"] == kind)
    for band, (low, high) in BANDS.items():
        yield from row("area", band, lambda r, low=low, high=high: low <= r["area"] < high)


def _row(
    measured: Estimate,
    title: str,
    unit: str,
    method: str,
    target: str = "",
    where: Mapping[str, Any] | None = None,
    split: str = "easy",
) -> Iterator[Row]:
    """Yield one row, or none if nothing was measured; the default is held to its promises."""
    if measured.samples:
        is_default = method == DEFAULT
        yield Row(
            title, measured.mean, unit, measured.low, measured.high, measured.samples,
            at_least=AT_LEAST[split].get(target) if is_default else None,
            at_most=AT_MOST[split].get(target) if is_default else None,
            parameters={"method": method, **(where or {})},
        )  # fmt: skip


def remarks(
    records: Mapping[tuple[str, str], Record], setting: Setting, names: Sequence[str]
) -> list[str]:
    """Return what a reader needs to know about these rows, in sentences."""
    sentences = []
    absent = [
        network.upper()
        for measure, network in NETWORK_OF_MEASURE.items()
        if all(record.get(measure) is None for record in records.values())
    ]
    if absent:
        sentences.append(f"{' and '.join(absent)} are not measured: their weights are absent.")
    if setting.thresholds and any(VARIANTS[name].equal_r for name in names):
        each = ", ".join(f"{judge} {value:.3g}" for judge, value in setting.thresholds.items())
        sentences.append(f"The thresholds of equal r were found on other scenes: {each}.")
    if any(VARIANTS[name].rival for name in names):
        sentences.append(SETTINGS)
    if {DEFAULT, *gate.VARIANTS} <= set(names):
        sentences += gate.verdicts(gate.differences(table(records)))
    return sentences
