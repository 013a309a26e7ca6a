"""The kernels' benchmarks: what they find wrong, what they say of it, and their commands."""

import json
import math
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from spotedit_kernels.impl import HAS_TRITON

from bench import cases, figures, layer, measure, memory_bound
from bench import suite as suite_module
from bench.measure import Outcome, Result
from bench.shapes import LAYERS
from bench.suite import NAMES, suite

ROOT = Path(__file__).parents[2]
CPU, ODD = torch.device("cpu"), LAYERS["odd"]
OPS = {
    "gathered_attention",
    "gathered_attention int8",
    "kv_blend",
    "latent_distance",
    "layer",
    "layer without attention",
    "qk_norm_rope",
    "select_tokens",
    "token_distance",
}
NEEDS_TRITON = pytest.mark.skipif(not HAS_TRITON, reason="Triton is not installed")


def inputs():
    return cases.Inputs("cpu", torch.float32)


def blend():
    return memory_bound.blend(ODD, ODD.query_rows(0.1), {"shape": "odd"}, inputs())


def status(call):
    case = blend()
    (outcome,) = measure.check(replace(case, calls={"it": lambda: call(case)}))
    return outcome.status


def test_a_wrong_call_is_found_and_a_right_one_is_not():
    def nearly(case):
        result = case.calls["reference"]()
        result[1][0, -1] *= 1.01
        return result

    assert status(lambda case: case.calls["reference"]()) == "ok"
    assert re.match(r"wrong: result 1: error .* exceeds the bound", status(nearly))
    untouched = tuple(torch.ones(1, ODD.num_noise, ODD.heads, ODD.dim) for _ in range(2))
    assert status(lambda case: untouched).startswith("wrong: result 0: error nan")
    assert status(lambda case: 1 / 0) == "failed: ZeroDivisionError: division by zero"


def test_integers_and_flags_must_be_equal():
    given = (torch.tensor([1, 2]), torch.tensor([True]))
    assert measure.fault(given, given, given, torch.float32) == ""
    other = (torch.tensor([1, 3]), torch.tensor([True]))
    assert measure.fault(other, given, given, torch.float32) == "result 0 differs in 1 places"


@NEEDS_TRITON
@pytest.mark.parametrize("attend", [True, False])
def test_the_whole_layer_agrees_with_the_unfused_one(attend):
    case = layer.path(ODD, ODD.query_rows(0.1), attend, {"shape": "odd"}, inputs())
    found = {outcome.name: outcome.status for outcome in measure.check(case)}
    assert found == dict.fromkeys(("triton", "reference", "auto", "eager-unfused"), "ok")
    if not attend:  # a call that leaves the caches as they were is found out
        q = case.calls["reference"]()
        lazy = replace(case, calls={"it": lambda: tuple(x.clone() for x in q)})
        assert measure.check(lazy)[0].status.startswith("wrong: result 1: error nan")


@NEEDS_TRITON
@pytest.mark.parametrize("impl", ["triton", "reference"])
def test_the_recorder_sees_our_kernels_only(impl):
    call = blend().calls[impl]
    with measure.Recorder() as recorder:
        call()
    assert recorder.ours == (impl == "triton")


def test_times_are_of_every_right_call_in_turn():
    order = []

    def call(name):
        return lambda: order.append(name) or (torch.ones(1),)

    found = measure.timed({name: call(name) for name in "ab"}, CPU, 4)
    assert "".join(order) == "abbaabba"
    assert [len(seconds) for seconds in found.values()] == [4, 4]
    calls = {"right": blend().calls["reference"], "wrong": lambda: (torch.ones(1),) * 2}
    result = measure.run(replace(blend(), calls=calls), CPU, 2)
    assert [len(outcome.seconds) for outcome in result.outcomes] == [2, 0]


def made_up(op, seconds, m=717, statuses=None):
    """A result at FLUX.1-Kontext's shape; `seconds` by name."""
    outcomes = [
        Outcome(name, (statuses or {}).get(name, "ok"), name == "triton", [s] * 2)
        for name, s in seconds.items()
    ]
    at = {"shape": "kontext", "M": m}
    return Result(op, at, 4e12, 1e12, "matmul", {}, outcomes)


def report(*results, targets=True):
    return figures.result_rows(results, {"matmul": 800.0, "copy": 3.0}, targets)


def targets(rows):
    return [(row.value, row.at_least, row.met) for row in rows if row.met is not None]


def test_speeds_shares_of_the_ceiling_and_targets():
    seconds = {"triton": 0.01, "auto": 0.012, "SDPA cuDNN": 0.012, "SDPA FLASH": 0.02}
    found = report(*(made_up("gathered_attention", seconds, m) for m in (717, 922, 4608)))
    assert found[0].value == 10_000
    assert found[0].parameters["TFLOP/s"] == 400
    assert found[0].parameters["of ceiling"] == "50.0%"
    best = pytest.approx(1.2)
    ours = [(best, goal, True) for goal in (1.15, 0.95, 0.75)]
    auto = (pytest.approx(1 / 1.2), 0.98, False)
    assert targets(found) == [row for each in ours for row in (each, auto)]
    assert found[-1].name == "gathered_attention, takes our kernel"
    assert found[-1].value == 0
    assert targets(report(made_up("gathered_attention", seconds), targets=False)) == []


def test_what_is_wrong_at_one_shape_has_no_speed_at_any():
    seconds = {"triton": 0.1, "reference": 1.0}
    right = made_up("token_distance", seconds)
    wrong = made_up("token_distance", seconds, m=64, statuses={"triton": "wrong: by much"})
    other = made_up("kv_blend", seconds)
    found = report(right, wrong, other)
    ours = [row for row in found if row.parameters.get("impl") == "triton"]
    for row in ours:
        assert math.isnan(row.value) == row.name.startswith("token_distance")
    checks = {row.parameters["check"] for row in ours if row.name == "token_distance"}
    assert checks == {"wrong: by much (shape kontext, M 64)"}
    assert [met for _, goal, met in targets(found) if goal == 5] == [False, False]


def test_every_shape_is_measured_and_the_sweep_is_that_of_the_ratios():
    plan = suite(NAMES, "cpu", torch.float32)
    for name in NAMES:
        assert [case for case in plan if f"gathered_attention {name}" in case]
    kontext = LAYERS["kontext"]
    rows = [kontext.query_rows(ratio) for ratio in (0.05, 0.1, 0.2, 0.4, 1.0)]
    assert set(kontext.sweep) - set(rows) == {640, 1408}
    assert kontext.attention(1).s == 8704


def test_what_matters_most_is_measured_first():
    first = list(suite(["kontext"], "cpu", torch.float32))[:3]
    assert first == [
        "gathered_attention kontext M=922",
        "layer kontext",
        "layer without attention kontext",
    ]


def test_compiled_baselines_can_be_left_out(monkeypatch):
    monkeypatch.setattr(suite_module, "Inputs", lambda device, dtype, compiled: compiled)
    monkeypatch.setattr(suite_module.attention, "attention", lambda shape, at, inputs: inputs)
    name = "gathered_attention kontext M=922"
    for given, expected in ((True, True), (False, False)):
        assert suite(["kontext"], "cuda", torch.float32, given)[name]() is expected


def without_interpreter(*command):
    """Run Python with diffusers absent and Triton not interpreting."""
    blocked = ("diffusers", "transformers", "accelerate")
    program = f"import sys, runpy; sys.modules.update(dict.fromkeys({blocked}))\n"
    program += "del sys.argv[0]; runpy.run_module(sys.argv[0], run_name='__main__')"
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "kernels"), *sys.path])
    done = subprocess.run(
        [sys.executable, "-c", program, *command],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_command_needs_no_diffusers_and_writes_rows_and_plots(tmp_path):
    command = ("--device", "cpu", "--shapes", "odd", "--repeats", "2", "--out", str(tmp_path))
    text = without_interpreter("bench", *command)
    found = json.loads((tmp_path / "kernels.json").read_text())["rows"]
    timed = [row for row in found if "check" in row["parameters"]]
    assert {row["name"] for row in timed} == OPS
    for row in timed:
        ok = row["parameters"]["check"] == "ok"
        assert (row["value"] is not None) == ok
        assert ok or row["parameters"]["check"].startswith("unavailable: RuntimeError")
    assert text.startswith("# kernels")
    for name in ("roofline", "sweep"):
        assert (tmp_path / f"kernels_{name}.png").stat().st_size > 10_000


def test_the_microbenchmarks_run():
    once = ("-v", "-p", "no:cacheprovider", "--benchmark-disable")
    text = without_interpreter("pytest", *once, "bench/bench_ops.py")
    for op in OPS:
        assert re.search(rf"test_op\[{op} tiny.*-reference\] PASSED", text), text
