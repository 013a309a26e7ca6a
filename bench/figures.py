"""From the kernels' measurements to rows, with the targets."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from .attention import SDPA
from .measure import Outcome, Result
from .rows import Row
from .suite import MAIN

OURS = ("triton", "auto")
BEST_SDPA, BEST = "best SDPA", "best of all"
# on a GPU at FLUX.1-Kontext's shape: baseline / ours at least this
RATIOS = {
    ("gathered_attention", "auto", BEST): 0.98,
    ("token_distance", "triton", "reference"): 5.0,
    ("layer", "auto", "eager-unfused"): 3.5,
    ("layer without attention", "auto", "eager-unfused"): 8.0,
}
SDPA_RATIOS = {717: 1.15, 922: 0.95}  # of "triton", by M
SDPA_RATIO = 0.75  # everywhere else
MEMORY_BOUND = ("qk_norm_rope", "kv_blend", "token_distance", "latent_distance")
SHARES = dict.fromkeys(MEMORY_BOUND, 0.85)  # of the copy's speed
INT8_BYTES = 0.52
Peak = Mapping[str, float]  # TFLOP/s of "matmul", TB/s of "copy"


def report(results: Sequence[Result], peak: Peak, targets: bool) -> list[Row]:
    """All rows; a call that was wrong at any shape of its op has no speed at any."""
    wrong = {
        (result.op, o.name): f"{o.status} ({_where(result.at)})"
        for result in results
        for o in result.outcomes
        if o.status.startswith("wrong")
    }
    found: list[Row] = []
    for result in results:
        bound = targets and result.at["shape"] == MAIN
        right = {
            o.name: o for o in result.outcomes if o.seconds and (result.op, o.name) not in wrong
        }
        for outcome in result.outcomes:
            status = wrong.get((result.op, outcome.name), outcome.status)
            found.append(_time(result, outcome, status, outcome.name in right, peak))
        found += _shares(result, right, peak, bound)
        found += _ratios(result, right, bound)
        for name, (value, unit) in result.facts.items():
            goal = INT8_BYTES if bound and name.startswith("cache bytes") else None
            found.append(
                Row(f"{result.op}: {name}", value, unit, at_most=goal, parameters=result.at)
            )
    return [*found, *_choices(results)]


def _where(at: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in at.items())


def _time(result: Result, outcome: Outcome, status: str, right: bool, peak: Peak) -> Row:
    at = {**result.at, "impl": outcome.name, "check": status}
    if not right:
        return Row(result.op, math.nan, "us", samples=0, parameters=at)
    middle = float(np.median(outcome.seconds))
    rates = {"matmul": result.flops / middle / 1e12, "copy": result.bytes / middle / 1e12}
    if result.flops:
        at["TFLOP/s"] = _short(rates["matmul"])
    at["TB/s"] = _short(rates["copy"])
    if result.ceiling:
        at["of ceiling"] = f"{rates[result.ceiling] / peak[result.ceiling]:.1%}"
    return Row.median(result.op, [1e6 * s for s in outcome.seconds], "us", parameters=at)


def _short(value: float) -> float:
    return float(f"{value:.4g}")


def _shares(result: Result, right: Mapping[str, Outcome], peak: Peak, bound: bool) -> Iterator[Row]:
    """Of the ceiling, where there is a target."""
    if not bound or result.op not in SHARES:
        return
    at = {**result.at, "impl": "triton"}
    share = math.nan
    if "triton" in right:
        rate = result.bytes / float(np.median(right["triton"].seconds)) / 1e12
        share = rate / peak["copy"]
    yield Row(
        f"{result.op}, of the copy's speed", share, "share",
        at_least=SHARES[result.op], parameters=at,
    )  # fmt: skip


def _ratios(result: Result, right: Mapping[str, Outcome], bound: bool) -> Iterator[Row]:
    """Baseline / ours for each baseline, and for the best ones where there are several."""
    pace = {name: float(np.median(o.seconds)) for name, o in right.items()}
    for name in OURS:
        if name not in (o.name for o in result.outcomes):
            continue
        against = {b: b for b in pace if b not in OURS}
        groups = {BEST_SDPA: SDPA, BEST: (*SDPA, "triton") if name == "auto" else ()}
        for title, group in groups.items():
            measured = [b for b in group if b in pace]
            if result.op == "gathered_attention" and measured:
                against[title] = min(measured, key=pace.__getitem__)
        for title, baseline in against.items():
            goal = _goal(result, name, title) if bound else None
            shown = title if title == baseline else f"{title} ({baseline})"
            at = {**result.at, "impl": name, "baseline": shown}
            if name in right:
                pairs = zip(right[baseline].seconds, right[name].seconds, strict=True)
                values = [b / ours for b, ours in pairs]
                yield Row.median(
                    f"{result.op}, baseline / ours", values, "x", at_least=goal, parameters=at
                )
            elif goal is not None:
                yield Row(
                    f"{result.op}, baseline / ours", math.nan, "x", samples=0,
                    at_least=goal, parameters=at,
                )  # fmt: skip


def _goal(result: Result, name: str, baseline: str) -> float | None:
    if (result.op, name, baseline) == ("gathered_attention", "triton", BEST_SDPA):
        return SDPA_RATIOS.get(int(result.at["M"]), SDPA_RATIO)
    return RATIOS.get((result.op, name, baseline))


def _choices(results: Sequence[Result]) -> Iterator[Row]:
    """How often "auto" takes a kernel of ours for attention, over the rows of a shape."""
    taken: dict[str, list[bool]] = {}
    for result in results:
        if result.op == "gathered_attention":
            ours = [o.ours for o in result.outcomes if o.name == "auto"]
            taken.setdefault(str(result.at["shape"]), []).extend(ours)
    for shape, flags in taken.items():
        at = {"shape": shape, "impl": "auto"}
        yield Row(
            "gathered_attention, takes our kernel", float(np.mean(flags)), "share",
            samples=len(flags), parameters=at,
        )  # fmt: skip
