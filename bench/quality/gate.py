"""Which measures see edits that are known to be bad: one that sees none of them decides nothing."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from ..rows import Row
from .measures import MEASURES
from .statistics import Estimate, Table, paired, worse
from .variants import DEFAULT

SEEN = "known bad, seen by"


@dataclass(frozen=True)
class Bad:
    """A kind of known-bad edit.

    Attributes:
        variants: its degrees, mildest first; one that is seen is enough.
        measures: those that are meant to see it.
    """

    variants: tuple[str, ...]
    measures: tuple[str, ...]


KINDS: Mapping[str, Bad] = {
    "reused tokens left out of attention": Bad(
        ("naive",), ("edit_db", "edit_ssim", "edit_features", "same_db")
    ),
    "threshold": Bad(tuple(f"threshold x{m}" for m in (2, 4, 8)), ("edit_db", "same_db", "recall")),
    "region shifted by two tokens": Bad(
        ("shifted",), ("edit_db", "same_db", "recall", "seam_excess")
    ),
    "no token replacement": Bad(("unreplaced",), ("still_db", "above_floor", "seam_excess")),
}
VARIANTS = tuple(name for kind in KINDS.values() for name in kind.variants)


def differences(found: Table) -> dict[tuple[str, str], Estimate]:
    """(known-bad variant, measure) -> its difference to the default, all that there are."""
    pairs = {(n, m): paired(found[n], found[DEFAULT], m) for n in VARIANTS for m in MEASURES}
    return {place: difference for place, difference in pairs.items() if difference.samples}


def seen_by(bad: Bad, found: Mapping[tuple[str, str], Estimate]) -> tuple[str, list[str]]:
    """The mildest variant that a measure meant for it sees, and those measures."""
    for name in bad.variants:
        seen = [m for m in bad.measures if (name, m) in found and worse(found[name, m], m)]
        if seen:
            return name, seen
    return bad.variants[-1], []


def rows(found: Mapping[tuple[str, str], Estimate]) -> Iterator[Row]:
    """For every kind, how many of the measures meant for it see it."""
    for kind, bad in KINDS.items():
        name, seen = seen_by(bad, found)
        yield Row(
            SEEN, len(seen), "measures", samples=1, at_least=1,
            parameters={"method": name, "kind": kind, "seen": ", ".join(seen)},
        )  # fmt: skip


def verdicts(found: Mapping[tuple[str, str], Estimate]) -> list[str]:
    """What the gate says, in sentences."""
    told = []
    for kind, bad in KINDS.items():
        name, seen = seen_by(bad, found)
        if not seen:
            told.append(f"Known bad, {kind}: NOT SEEN by any measure meant for it.")
            continue
        missed = bad.variants[: bad.variants.index(name)]
        also = f"; {', '.join(missed)} not" if missed else ""
        ways = ", ".join(_sentence(found[name, m], m) for m in seen)
        told.append(f"Known bad, {kind}: {name} is seen ({ways}){also}.")
    blind = [m for m in MEASURES if any(p[1] == m for p in found)]
    blind = [m for m in blind if not any(worse(d, m) for p, d in found.items() if p[1] == m)]
    told += [
        f"{MEASURES[m].name} sees nothing that is known to be bad: it decides nothing."
        for m in blind
    ]
    return told


def _sentence(d: Estimate, measure: str) -> str:
    m = MEASURES[measure]
    return f"{m.name} {d.mean:.3g} [{d.low:.3g}, {d.high:.3g}] {m.unit}".rstrip()
