"""From records to rows."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

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
OWN = ("same_db", "above_floor", "seam_excess", "recall", "precision")
SIZES = {
    "active_touched": "active / touched tokens",
    "active_ringed": "active / touched tokens and a ring of one around them",
    "active_bound": "active / twice the touched tokens and the ring",
}
BANDS = {"below 5%": (0.0, 0.05), "5 to 20%": (0.05, 0.2), "above 20%": (0.2, 1.0)}
RATIO, WORK, SECONDS = "r, spot steps", "work saved", "seconds"
FAILED = "does not run"
SEAM = "seam error, above dense's, low end of the interval"
# of the default, what the project promises
AT_LEAST = {"edit_db": -0.3, "above_floor": -0.1, "recall": 0.97}
AT_MOST = {"active_bound": 1.0, RATIO: 0.35}


def summarise(
    records: Mapping[tuple[str, str], Record],
    names: Sequence[str],
    targets: Mapping[str, float] = KIND_DB,
) -> list[Row]:
    """Rows of the dense edits and of every variant beside the one of its loop.

    Args:
        names: of the variants.
        targets: of the dense edits against the truth, in dB by kind of instruction or "all".
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
            rows += _variant(name, found[name], found[VARIANTS[name].loop.dense])
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
    name: str, records: Mapping[str, Record], dense: Mapping[str, Record]
) -> Iterator[Row]:
    for figure in PAIRED:
        measure = MEASURES[figure]
        found = paired(records, dense, figure)
        yield from _row(found, measure.name + DIFFERENCE, measure.unit, name, figure)
    for figure in OWN:
        yield from _row(
            mean(records, figure), MEASURES[figure].name, MEASURES[figure].unit, name, figure
        )
    for figure, title in SIZES.items():
        yield from _row(mean(records, figure), title, "x", name, figure)
    yield from _row(mean(records, "r"), RATIO, "share", name, RATIO)
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
            yield Row(
                SEAM, seam.low, "/255", samples=seam.samples, at_most=0.0,
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
) -> Iterator[Row]:
    """One row, or none where nothing was measured."""
    if found.samples:
        own = method == DEFAULT
        yield Row(
            title, found.mean, unit, found.low, found.high, found.samples,
            at_least=AT_LEAST.get(target) if own else None,
            at_most=AT_MOST.get(target) if own else None,
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
