"""Make rows of the kernels' measurements, with their targets."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from .attention import SDPA
from .measure import Outcome, Result
from .rows import Parameters, Row
from .suite import MAIN

OURS = ("triton", "auto")
BEST_SDPA, BEST = "best SDPA", "best of all"
# (op, implementation, baseline) -> least baseline / ours, on a GPU at FLUX.1-Kontext's shape
RATIOS = {
    ("gathered_attention", "auto", BEST): 0.98,
    ("token_distance", "triton", "reference"): 5.0,
    ("layer", "auto", "eager-unfused"): 3.5,
    ("layer without attention", "auto", "eager-unfused"): 8.0,
}
SDPA_RATIOS = {717: 1.15, 922: 0.95}  # M -> least best SDPA / "triton"
SDPA_RATIO = 0.75  # the same at any other M
MEMORY_BOUND = ("qk_norm_rope", "kv_blend", "token_distance", "latent_distance")
SHARES = dict.fromkeys(MEMORY_BOUND, 0.85)  # op -> least share of the copy's speed
INT8_BYTES = 0.52  # largest size of an int8 cache, relative to one that is not quantised
Ceilings = Mapping[str, float]  # TFLOP/s of "matmul", TB/s of "copy"


def result_rows(results: Sequence[Result], ceilings: Ceilings, targets: bool) -> list[Row]:
    """Make all rows. A call that is wrong at any shape of its operation gets no speed at all."""
    wrong = {
        (result.op, outcome.name): f"{outcome.status} ({_describe(result.parameters)})"
        for result in results
        for outcome in result.outcomes
        if outcome.status.startswith("wrong")
    }
    rows: list[Row] = []
    for result in results:
        has_targets = targets and result.parameters["shape"] == MAIN
        seconds = {
            outcome.name: outcome.seconds
            for outcome in result.outcomes
            if outcome.seconds and (result.op, outcome.name) not in wrong
        }
        for outcome in result.outcomes:
            status = wrong.get((result.op, outcome.name), outcome.status)
            rows.append(_time(result, outcome, status, seconds.get(outcome.name), ceilings))
        if has_targets and result.op in SHARES:
            rows.append(_share_of_copy(result, seconds.get("triton"), ceilings))
        rows += _ratios(result, seconds, has_targets)
        for name, (value, unit) in result.facts.items():
            goal = INT8_BYTES if has_targets and name.startswith("cache bytes") else None
            title = f"{result.op}: {name}"
            rows.append(Row(title, value, unit, at_most=goal, parameters=result.parameters))
    return [*rows, *_choices(results)]


def _describe(parameters: Parameters) -> str:
    return ", ".join(f"{name} {value}" for name, value in parameters.items())


def _time(
    result: Result,
    outcome: Outcome,
    status: str,
    seconds: Sequence[float] | None,
    ceilings: Ceilings,
) -> Row:
    """Make the row of a call's time and speeds; without `seconds` it has neither."""
    parameters: dict[str, Any] = {**result.parameters, "impl": outcome.name, "check": status}
    if seconds is None:
        return Row(result.op, math.nan, "us", samples=0, parameters=parameters)
    median = float(np.median(seconds))
    speeds = {"matmul": result.flops / median / 1e12, "copy": result.bytes / median / 1e12}
    if result.flops:
        parameters["TFLOP/s"] = _four_digits(speeds["matmul"])
    parameters["TB/s"] = _four_digits(speeds["copy"])
    if result.ceiling:
        share = speeds[result.ceiling] / ceilings[result.ceiling]
        parameters["of ceiling"] = f"{share:.1%}"
    return Row.median(result.op, [1e6 * s for s in seconds], "us", parameters=parameters)


def _four_digits(value: float) -> float:
    return float(f"{value:.4g}")


def _share_of_copy(result: Result, seconds: Sequence[float] | None, ceilings: Ceilings) -> Row:
    """Make the row of our kernel's speed as a share of the copy's, which has a target."""
    share = math.nan
    if seconds is not None:
        share = result.bytes / float(np.median(seconds)) / 1e12 / ceilings["copy"]
    return Row(
        f"{result.op}, of the copy's speed", share, "share",
        at_least=SHARES[result.op], parameters={**result.parameters, "impl": "triton"},
    )  # fmt: skip


def _ratios(
    result: Result, seconds: Mapping[str, Sequence[float]], has_targets: bool
) -> Iterator[Row]:
    """Make rows of baseline / ours for every baseline, and for the best of several."""
    title = f"{result.op}, baseline / ours"
    names = {outcome.name for outcome in result.outcomes}
    for ours in (name for name in OURS if name in names):
        for shown, baseline in _baselines(result, seconds, ours).items():
            goal = _goal(result, ours, shown) if has_targets else None
            full_name = shown if shown == baseline else f"{shown} ({baseline})"
            parameters = {**result.parameters, "impl": ours, "baseline": full_name}
            if ours in seconds:
                pairs = zip(seconds[baseline], seconds[ours], strict=True)
                ratios = [their_time / our_time for their_time, our_time in pairs]
                yield Row.median(title, ratios, "x", at_least=goal, parameters=parameters)
            elif goal is not None:
                yield Row.median(title, [], "x", at_least=goal, parameters=parameters)


def _baselines(result: Result, seconds: Mapping[str, Sequence[float]], ours: str) -> dict[str, str]:
    """Return the measured baselines of `ours`: the name that is shown -> the name of the call."""
    baselines = {name: name for name in seconds if name not in OURS}
    groups = {BEST_SDPA: [*SDPA], BEST: [*SDPA, "triton"] if ours == "auto" else []}
    for shown, group in groups.items():
        measured = [name for name in group if name in seconds]
        if result.op == "gathered_attention" and measured:
            baselines[shown] = min(measured, key=lambda name: float(np.median(seconds[name])))
    return baselines


def _goal(result: Result, ours: str, baseline: str) -> float | None:
    """Return the least baseline / ours, or None."""
    if (result.op, ours, baseline) == ("gathered_attention", "triton", BEST_SDPA):
        return SDPA_RATIOS.get(int(result.parameters["M"]), SDPA_RATIO)
    return RATIOS.get((result.op, ours, baseline))


def _choices(results: Sequence[Result]) -> Iterator[Row]:
    """Make rows of how often "auto" takes our kernel for attention, by shape."""
    by_shape: dict[str, list[bool]] = {}
    for result in results:
        if result.op == "gathered_attention":
            flags = [outcome.ours for outcome in result.outcomes if outcome.name == "auto"]
            by_shape.setdefault(str(result.parameters["shape"]), []).extend(flags)
    for shape, flags in by_shape.items():
        yield Row(
            "gathered_attention, takes our kernel", float(np.mean(flags)), "share",
            samples=len(flags), parameters={"shape": shape, "impl": "auto"},
        )  # fmt: skip
