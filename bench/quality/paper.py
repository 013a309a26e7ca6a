"""The paper's ablations (arXiv 2512.22323, tables 3 and 5, figures 6 and S1) beside ours."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from .measures import MEASURES
from .report import AGAINST_DEFAULT, WORK
from .results import Results
from .statistics import FEWEST
from .variants import DEFAULT

UNLIKE = (
    "The paper compares whole pictures with their sources on PIE-Bench++ with FLUX.1-Kontext; here "
    "the edited region is compared with a known truth, of the tiny editor. A counterpart tells "
    "whether the effect is there, not its size. It is said to be there where the interval of the "
    "paired difference to the default leaves out 0."
)


@dataclass(frozen=True)
class Ablation:
    """A finding of the paper and its counterpart.

    Attributes:
        found: what the paper reports, of the changed method against the proposed one.
        sign: of the change in quality that it finds: -1 worse, 1 better.
        sweep, method: where the counterpart is.
        measures: in which the counterpart is looked for.
    """

    title: str
    found: str
    sign: int
    sweep: str
    method: str
    measures: tuple[str, ...] = ("edit_db", "same_db")


ABLATIONS = (
    Ablation(
        "Without resets",
        "worse: PSNR 17.10 against 18.73 dB, SSIM 0.782 against 0.792, DISTS 0.154 against 0.136; "
        "speed-up 2.25 against 1.95",
        -1, "resets", "resets none",
    ),
    Ablation(
        "Without the condition cache",
        "better but slow: PSNR 19.16 against 18.73 dB, SSIM 0.801 against 0.792, DISTS 0.131 "
        "against 0.136; speed-up 1.24 against 1.95",
        1, "condition", "condition uncached",
    ),
    Ablation(
        "Reused tokens left out of attention", "worse, in pictures", -1, "fusion", "naive",
    ),
    Ablation(
        "L2 on the latents in place of the perceptual score", "worse, in pictures", -1, "judges",
        "l2, equal r", ("edit_db", "same_db", "recall"),
    ),
)  # fmt: skip
BLENDS = {
    "anchored": "the paper's introduction",
    "recursive": "its eqs. 7-9 as printed",
    "static": "what the released code computes",
    "condition": "the limit of no cached value",
}


def agreement(rows: Mapping[str, Mapping[str, Any]], sign: int) -> str:
    """What differences (by measure, better is positive or not as `MEASURES` says) say of a sign."""
    ways = {measure: _sign(row, measure) for measure, row in rows.items()}
    agreeing = [MEASURES[m].name for m, way in ways.items() if way == sign]
    opposed = [MEASURES[m].name for m, way in ways.items() if way == -sign]
    if agreeing and opposed:
        return f"Mixed: {', '.join(agreeing)} agree, {', '.join(opposed)} do not."
    if agreeing:
        return f"Agrees ({', '.join(agreeing)})."
    if opposed:
        return f"DISAGREES ({', '.join(opposed)})."
    return "Not told apart here."


def _sign(row: Mapping[str, Any], measure: str) -> int:
    if row["samples"] < FEWEST:
        return 0
    better = 1 if MEASURES[measure].more else -1
    return better * ((row["low"] > 0) - (row["high"] < 0))


def sentences(runs: Mapping[str, Results]) -> Iterator[str]:
    """Lines of markdown, of those ablations whose runs there are."""
    yield UNLIKE
    yield ""
    for ablation in ABLATIONS:
        results = runs.get(f"quality-{ablation.sweep}")
        if results is None:
            continue
        rows = _differences(results, ablation.method, ablation.measures)
        yield (
            f"- **{ablation.title}.** Paper: {ablation.found}. Here: {_told(rows)}; work saved "
            f"{_work(results, ablation.method)} against {_work(results, DEFAULT)}. "
            f"{agreement(rows, ablation.sign)}"
        )
    results = runs.get("quality-fusion")
    for method, source in BLENDS.items() if results is not None else ():
        assert results is not None
        rows = _differences(results, method, ("edit_db", "same_db"))
        yield (
            f"- **Blend `{method}`** ({source}) against the default: {_told(rows)}. {_better(rows)}"
        )


def _better(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """What the differences of a blend say: the truth decides, nearness to dense is mentioned."""
    ways = {measure: _sign(row, measure) for measure, row in rows.items()}
    truth, same = ways.get("edit_db", 0), ways.get("same_db", 0)
    if truth > 0:
        return "**It is better than the default's direction: a change of the default is proposed.**"
    told = "Worse." if truth < 0 else "Not told apart by the truth."
    nearer = {1: " It is nearer to dense.", -1: " It is further from dense.", 0: ""}
    return told + nearer[same]


def _differences(
    results: Results, method: str, measures: tuple[str, ...]
) -> dict[str, Mapping[str, Any]]:
    rows = {m: results.row(MEASURES[m].name + AGAINST_DEFAULT, method) for m in measures}
    return {measure: row for measure, row in rows.items() if row is not None}


def _told(rows: Mapping[str, Mapping[str, Any]]) -> str:
    return ", ".join(
        f"{MEASURES[m].name} {r['value']:+.3f} [{r['low']:+.3f}, {r['high']:+.3f}] {r['unit']}"
        for m, r in rows.items()
    )


def _work(results: Results, method: str) -> str:
    row = results.row(WORK, method)
    return "unknown" if row is None else f"{row['value']:.0%}"
