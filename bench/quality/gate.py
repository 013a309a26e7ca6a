"""Check which measures detect edits that are broken on purpose ("known bad").

No conclusion is drawn from a measure that detects none of them.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from ..rows import Row
from .measures import MEASURES
from .statistics import Estimate, Table, paired, worse
from .variants import DEFAULT

SEEN = "known bad, seen by"  # name of the rows
PREFIX = "Known bad"  # begins every sentence of `verdicts`


@dataclass(frozen=True)
class Bad:
    """A way to break edits.

    Attributes:
        variants: the same defect in rising degrees; detecting one of them is enough.
        measures: the measures that should detect it.
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


def differences(table: Table) -> dict[tuple[str, str], Estimate]:
    """Return the difference to the default for each (known-bad variant, measure) with samples."""
    estimates = {(n, m): paired(table[n], table[DEFAULT], m) for n in VARIANTS for m in MEASURES}
    return {key: estimate for key, estimate in estimates.items() if estimate.samples}


def seen_by(bad: Bad, estimates: Mapping[tuple[str, str], Estimate]) -> tuple[str, list[str]]:
    """Return the mildest variant that one of its measures detects, and those measures.

    If none is detected, this is the strongest variant and an empty list.
    """
    for name in bad.variants:
        detecting = [
            measure
            for measure in bad.measures
            if (name, measure) in estimates and worse(estimates[name, measure], measure)
        ]
        if detecting:
            return name, detecting
    return bad.variants[-1], []


def rows(estimates: Mapping[tuple[str, str], Estimate]) -> Iterator[Row]:
    """Yield the number of measures that detect each known-bad kind."""
    for kind, bad in KINDS.items():
        name, detecting = seen_by(bad, estimates)
        yield Row(
            SEEN, len(detecting), "measures", samples=1, at_least=1,
            parameters={"method": name, "kind": kind, "seen": ", ".join(detecting)},
        )  # fmt: skip


def verdicts(estimates: Mapping[tuple[str, str], Estimate]) -> list[str]:
    """Return the result of the check in sentences."""
    sentences = []
    for kind, bad in KINDS.items():
        name, detecting = seen_by(bad, estimates)
        if not detecting:
            sentences.append(f"{PREFIX}, {kind}: NOT DETECTED by any measure meant for it.")
            continue
        missed = bad.variants[: bad.variants.index(name)]
        also = f"; not detected: {', '.join(missed)}" if missed else ""
        ways = ", ".join(_figure(estimates[name, m], m) for m in detecting)
        sentences.append(f"{PREFIX}, {kind}: {name} is detected ({ways}){also}.")
    for measure in MEASURES:
        measured = [estimate for (_, m), estimate in estimates.items() if m == measure]
        if measured and not any(worse(estimate, measure) for estimate in measured):
            sentences.append(
                f"{PREFIX}: {MEASURES[measure].name} does not detect any of the variants, so we "
                "draw no conclusion from it."
            )
    return sentences


def _figure(estimate: Estimate, measure: str) -> str:
    name, unit = MEASURES[measure].name, MEASURES[measure].unit
    return f"{name} {estimate.mean:.3g} [{estimate.low:.3g}, {estimate.high:.3g}] {unit}".rstrip()
