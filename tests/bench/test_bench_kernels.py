"""Test the kernels' benches: which calls they find wrong, their rows, and their commands."""

import json
import math
import os
import re
import subprocess
import sys
from dataclasses import replace
from functools import partial
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
    """Return the status of `call`, which takes the case of a blend."""
    case = blend()
    (outcome,) = measure.check(replace(case, calls={"call": lambda: call(case)}))
    return outcome.status


def test_only_a_wrong_call_is_found_wrong():
    def slightly_wrong(case):
        result = case.calls["reference"]()
        result[1][0, -1] *= 1.01
        return result

    assert status(lambda case: case.calls["reference"]()) == "ok"
    assert re.match(r"wrong: result 1: error .* exceeds the bound", status(slightly_wrong))
    untouched = tuple(torch.ones(1, ODD.num_noise, ODD.heads, ODD.dim) for _ in range(2))
    assert status(lambda case: untouched).startswith("wrong: result 0: error nan")
    assert status(lambda case: 1 / 0) == "failed: ZeroDivisionError: division by zero"


def test_integers_and_flags_must_be_equal():
    exact = (torch.tensor([1, 2]), torch.tensor([True]))
    assert measure.fault(exact, exact, exact, torch.float32) == ""
    wrong = (torch.tensor([1, 3]), torch.tensor([True]))
    assert measure.fault(wrong, exact, exact, torch.float32) == "result 0 differs in 1 places"


@NEEDS_TRITON
@pytest.mark.parametrize("attend", [True, False])
def test_the_whole_layer_agrees_with_the_unfused_one(attend):
    case = layer.path(ODD, ODD.query_rows(0.1), attend, {"shape": "odd"}, inputs())
    statuses = {outcome.name: outcome.status for outcome in measure.check(case)}
    assert statuses == dict.fromkeys(("triton", "reference", "auto", "eager-unfused"), "ok")
    if not attend:  # a call that does not write the caches is found wrong
        q = case.calls["reference"]()
        lazy = replace(case, calls={"call": lambda: tuple(x.clone() for x in q)})
        assert measure.check(lazy)[0].status.startswith("wrong: result 1: error nan")


@NEEDS_TRITON
@pytest.mark.parametrize("impl", ["triton", "reference"])
def test_the_recorder_notes_only_our_kernels(impl):
    call = blend().calls[impl]
    with measure.Recorder() as recorder:
        call()
    assert recorder.ours == (impl == "triton")


def test_correct_calls_are_timed_in_turn():
    order = []

    def call(name):
        order.append(name)
        return (torch.ones(1),)

    seconds = measure.timed({name: partial(call, name) for name in "ab"}, CPU, 4)
    assert "".join(order) == "abbaabba"
    assert [len(times) for times in seconds.values()] == [4, 4]
    calls = {"right": blend().calls["reference"], "wrong": lambda: (torch.ones(1),) * 2}
    result = measure.run(replace(blend(), calls=calls), CPU, 2)
    assert [len(outcome.seconds) for outcome in result.outcomes] == [2, 0]


def made_up(op, seconds, m=717, statuses=None):
    """Make a result at FLUX.1-Kontext's shape; `seconds` and `statuses` are by call."""
    outcomes = [
        Outcome(name, (statuses or {}).get(name, "ok"), name == "triton", [s] * 2)
        for name, s in seconds.items()
    ]
    parameters = {"shape": "kontext", "M": m}
    return Result(op, parameters, 4e12, 1e12, "matmul", {}, outcomes)


def rows_of(*results, targets=True):
    return figures.result_rows(results, {"matmul": 800.0, "copy": 3.0}, targets)


def targets(rows):
    """Return (value, goal, whether it is met) of the rows with a target."""
    return [(row.value, row.at_least, row.met) for row in rows if row.met is not None]


def test_rows_have_speeds_shares_of_the_ceiling_and_targets():
    seconds = {"triton": 0.01, "auto": 0.012, "SDPA cuDNN": 0.012, "SDPA FLASH": 0.02}
    rows = rows_of(*(made_up("gathered_attention", seconds, m) for m in (717, 922, 4608)))
    assert rows[0].value == 10_000
    assert rows[0].parameters["TFLOP/s"] == 400
    assert rows[0].parameters["of ceiling"] == "50.0%"
    best = pytest.approx(1.2)
    ours = [(best, goal, True) for goal in (1.15, 0.95, 0.75)]
    auto = (pytest.approx(1 / 1.2), 0.98, False)
    assert targets(rows) == [row for each in ours for row in (each, auto)]
    assert rows[-1].name == "gathered_attention, takes our kernel"
    assert rows[-1].value == 0
    assert targets(rows_of(made_up("gathered_attention", seconds), targets=False)) == []


def test_a_call_that_is_wrong_at_one_shape_has_no_speed_at_any():
    seconds = {"triton": 0.1, "reference": 1.0}
    right = made_up("token_distance", seconds)
    wrong = made_up("token_distance", seconds, m=64, statuses={"triton": "wrong: by much"})
    other = made_up("kv_blend", seconds)
    rows = rows_of(right, wrong, other)
    ours = [row for row in rows if row.parameters.get("impl") == "triton"]
    for row in ours:
        assert math.isnan(row.value) == row.name.startswith("token_distance")
    checks = {row.parameters["check"] for row in ours if row.name == "token_distance"}
    assert checks == {"wrong: by much (shape kontext, M 64)"}
    assert [met for _, goal, met in targets(rows) if goal == 5] == [False, False]


def test_every_shape_is_measured_and_the_sweep_has_the_usual_ratios():
    plan = suite(NAMES, "cpu", torch.float32)
    for name in NAMES:
        assert [case for case in plan if f"gathered_attention {name}" in case]
    kontext = LAYERS["kontext"]
    rows = [kontext.query_rows(ratio) for ratio in (0.05, 0.1, 0.2, 0.4, 1.0)]
    assert set(kontext.sweep) - set(rows) == {640, 1408}  # padded numbers of rows
    assert kontext.attention(1).s == 8704


def test_the_most_important_cases_are_measured_first():
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
    for with_compiled in (True, False):
        cases_by_name = suite(["kontext"], "cuda", torch.float32, with_compiled)
        assert cases_by_name[name]() is with_compiled


def without_interpreter(*command):
    """Run a module in a Python that has no diffusers and does not interpret Triton kernels."""
    blocked = ("diffusers", "transformers", "accelerate")
    program = f"import sys, runpy; sys.modules.update(dict.fromkeys({blocked}))\n"
    program += "del sys.argv[0]; runpy.run_module(sys.argv[0], run_name='__main__')"
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "kernels"), *sys.path])
    process = subprocess.run(
        [sys.executable, "-c", program, *command],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert process.returncode == 0, process.stdout + process.stderr
    return process.stdout


def test_the_command_needs_no_diffusers_and_writes_rows_and_plots(tmp_path):
    command = ("--device", "cpu", "--shapes", "odd", "--repeats", "2", "--out", str(tmp_path))
    text = without_interpreter("bench", *command)
    rows = json.loads((tmp_path / "kernels.json").read_text())["rows"]
    timed = [row for row in rows if "check" in row["parameters"]]
    assert {row["name"] for row in timed} == OPS
    for row in timed:
        ok = row["parameters"]["check"] == "ok"
        assert (row["value"] is not None) == ok
        assert ok or row["parameters"]["check"].startswith("unavailable: RuntimeError")
    assert text.startswith("# kernels")
    for name in ("roofline", "sweep"):
        assert (tmp_path / f"kernels_{name}.png").stat().st_size > 10_000


@pytest.mark.full
def test_the_microbenchmarks_run():
    options = ("-v", "-p", "no:cacheprovider", "--benchmark-disable")
    text = without_interpreter("pytest", *options, "bench/bench_ops.py")
    for op in OPS:
        assert re.search(rf"test_op\[{op} tiny.*-reference\] PASSED", text), text
