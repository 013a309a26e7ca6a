"""Compare the paper's ablations (arXiv 2512.22323, tables 3 and 5, figures 6 and S1) with ours."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from .measures import MEASURES
from .report import AGAINST_DEFAULT, WORK
from .results import Results
from .statistics import FEWEST
from .variants import DEFAULT

UNLIKE = (
    "The paper edits PIE-Bench++ with FLUX.1-Kontext and compares whole pictures with their "
    "sources. Here the tiny editor edits scenes with a known truth, and the edited region is "
    "compared with it. So our counterparts show whether an effect exists, not how large it is. We "
    "say that it exists if the interval of the paired difference to the default excludes 0."
)


@dataclass(frozen=True)
class Ablation:
    """An ablation of the paper and its counterpart here.

    Attributes:
        title: what is changed.
        finding: what the paper reports for the change, against its proposed method.
        sign: 1 if the paper finds the change better, -1 if worse.
        sweep, method: the rows of the counterpart.
        measures: the measures of which the differences are reported.
    """

    title: str
    finding: str
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
    "recursive": "the paper's eqs. 7-9 as printed",
    "static": "what the released code computes",
    "condition": "the condition's value alone",
}


def agreement(rows: Mapping[str, Mapping[str, Any]], sign: int) -> str:
    """Say whether the differences to the default, by measure, agree with the paper's sign."""
    signs = {measure: _sign(row, measure) for measure, row in rows.items()}
    agreeing = [MEASURES[m].name for m, its_sign in signs.items() if its_sign == sign]
    opposed = [MEASURES[m].name for m, its_sign in signs.items() if its_sign == -sign]
    if agreeing and opposed:
        return f"Mixed: {', '.join(agreeing)} agree, {', '.join(opposed)} do not."
    if agreeing:
        return f"Agrees ({', '.join(agreeing)})."
    if opposed:
        return f"DISAGREES ({', '.join(opposed)})."
    return "No significant difference here."


def _sign(row: Mapping[str, Any], measure: str) -> int:
    """Return 1 if the difference is significantly better, -1 if worse, else 0."""
    if row["samples"] < FEWEST:
        return 0
    is_positive, is_negative = row["low"] > 0, row["high"] < 0
    sign = int(is_positive) - int(is_negative)
    return sign if MEASURES[measure].higher_is_better else -sign


def sentences(runs: Mapping[str, Results]) -> Iterator[str]:
    """Yield the lines of markdown for the ablations that have been run."""
    yield UNLIKE
    yield ""
    for ablation in ABLATIONS:
        results = runs.get(f"quality-{ablation.sweep}")
        if results is None:
            continue
        rows = _differences(results, ablation.method, ablation.measures)
        yield (
            f"- **{ablation.title}.** Paper: {ablation.finding}. Here: {_figures(rows)}; work "
            f"saved {_work(results, ablation.method)} against {_work(results, DEFAULT)}. "
            f"{agreement(rows, ablation.sign)}"
        )
    results = runs.get("quality-fusion")
    if results is None:
        return
    for method, source in BLENDS.items():
        rows = _differences(results, method, ("edit_db", "same_db"))
        yield (
            f"- **Blend `{method}`** ({source}) against the default: {_figures(rows)}. "
            f"{_verdict_on_blend(rows)}"
        )


def _verdict_on_blend(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """Judge a blend by the truth; also say whether it is closer to dense."""
    signs = {measure: _sign(row, measure) for measure, row in rows.items()}
    against_truth, against_dense = signs.get("edit_db", 0), signs.get("same_db", 0)
    if against_truth > 0:
        return "**Better than the default: we propose to change the default.**"
    verdict = (
        "Worse." if against_truth < 0 else "No significant difference in closeness to the truth."
    )
    closeness = {1: " It is closer to dense.", -1: " It is further from dense.", 0: ""}
    return verdict + closeness[against_dense]


def _differences(
    results: Results, method: str, measures: tuple[str, ...]
) -> dict[str, Mapping[str, Any]]:
    """Return the method's rows of the difference to the default, by measure."""
    rows = {m: results.row(MEASURES[m].name + AGAINST_DEFAULT, method) for m in measures}
    return {measure: row for measure, row in rows.items() if row is not None}


def _figures(rows: Mapping[str, Mapping[str, Any]]) -> str:
    return ", ".join(
        f"{MEASURES[m].name} {r['value']:+.3f} [{r['low']:+.3f}, {r['high']:+.3f}] {r['unit']}"
        for m, r in rows.items()
    )


def _work(results: Results, method: str) -> str:
    row = results.row(WORK, method)
    return "unknown" if row is None else f"{row['value']:.0%}"
