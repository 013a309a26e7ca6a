"""Test `bench.temporal` on known records, and its command on the tiny editor.

`spotedit calibrate` is tested here too.
"""

import json
from itertools import pairwise

import numpy as np
import pytest

import spotedit.tiny
from bench import edits, temporal, temporal_time
from spotedit.cli import main
from spotedit.evaluation import quality


def record(work, edit_db, **more):
    return {"work": work, "edit_db": edit_db, "ran": 10, **more}


def test_targets_compare_spot_with_the_same_method_without_it():
    plan = {28: ["dense", "tea", "spot+tea", "spot+tea text"], 8: ["dense", "spot"]}
    figures = {
        (28, "dense"): (1.0, 20.0),
        (28, "tea"): (0.4, 19.9),
        (28, "spot+tea"): (0.2, 19.7),
        (28, "spot+tea text"): (0.1, 18.0),
        (8, "dense"): (1.0, 20.0),
        (8, "spot"): (0.9, 19.8),
    }
    records = {
        (steps, method, seed): record(work, db + seed, background=-0.01 if "spot" in method else 0)
        for (steps, method), (work, db) in figures.items()
        for seed in range(3)
    }
    rows = list(temporal.result_rows(records, plan))
    with_target = {
        (row.name, row.parameters["steps"], row.parameters["method"]): row
        for row in rows
        if row.met is not None and not row.name.startswith("background")
    }
    assert {key: (pytest.approx(row.value), row.met) for key, row in with_target.items()} == {
        ("edited region, difference to tea", 28, "spot+tea"): (-0.2, True),
        ("work, tea / this", 28, "spot+tea"): (2.0, True),
        ("edited region, difference to dense", 8, "spot"): (-0.2, True),
        ("work, dense / this", 8, "spot"): (1 / 0.9, False),
    }


def test_seconds_are_compared_pass_by_pass():
    seconds = {"dense": [8.0, 6.0], "tea": [4.0, 4.0], "spot+tea": [2.0, 4.0]}
    rows = {(r.name, r.parameters["method"]): r for r in temporal_time.result_rows(28, seconds)}
    assert rows["whole edit, tea / this", "spot+tea"].value == 1.5
    assert rows["whole edit, tea / this", "spot+tea"].met
    assert rows["whole edit, dense / this", "spot+tea"].value == 2.75
    assert rows["whole edit, dense / this", "tea"].met is None
    at_few_steps = temporal_time.result_rows(8, {"dense": [1.1], "spot": [1.0]})
    assert [row.met for row in at_few_steps if row.met is not None] == [False]


def test_the_command_continues_where_it_stopped(tmp_path, capsys, monkeypatch):
    options = ["--scenes", "1", "--first-seed", "1000", "--steps", "13", "--methods", "tea"]
    options += ["spot+tea", "--work", str(tmp_path), "--out", str(tmp_path)]
    temporal.main(options)
    rows = json.loads((tmp_path / "temporal.json").read_text())["rows"]
    assert {(r["parameters"]["steps"], r["parameters"]["method"]) for r in rows} == {
        (13, "dense"), (13, "tea"), (13, "spot+tea"),
    }  # fmt: skip
    assert (tmp_path / "temporal.png").stat().st_size > 1000
    monkeypatch.setattr(temporal, "edit", lambda *args: pytest.fail("this edit was made before"))
    temporal.main(options)
    assert "| work, tea / this |" in capsys.readouterr().out


def test_spot_saves_work_and_keeps_the_edit_at_eight_steps():
    pipe = edits.load()
    dense, spot = (temporal.edit(pipe, 1003, 8, method) for method in ("dense", "spot"))
    assert dense["work"] == 1
    assert 1 / spot["work"] >= 1.2
    assert dense["edit_db"] - spot["edit_db"] <= 0.5
    assert quality.MARGIN > 0
    assert spot["background"] > -0.1


def test_calibrate_writes_coefficients_that_teacache_takes(tmp_path, capsys):
    out = tmp_path / "c.json"
    command = ["calibrate", "tiny", "--scenes", "1", "--steps", "6", "--also", "5"]
    assert main([*command, "--device", "cpu", "--out", str(out)]) == 0
    row = json.loads(out.read_text())
    assert f"TeaCache(coefficients={row['coefficients']})" in capsys.readouterr().out
    assert (row["pairs_of_steps"], row["edits"]) == (9, 2)
    low, high = row["input_changes"]
    grid = np.polyval(row["coefficients"], np.linspace(low, high, 9))
    assert all(a <= b for a, b in pairwise(grid))
    method = spotedit.TeaCache(0.5, row["coefficients"])
    spotedit.disable(spotedit.enable(spotedit.tiny.load(), temporal=method)._pipe)
    assert main([*command, "--out", str(out)]) == 2  # the file exists


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["some/model"], "expected PICTURE INSTRUCTION pairs"), (["tiny", "a.png"], "no instruction")],
)
def test_calibrate_needs_pairs(arguments, message, tmp_path, capsys):
    assert main(["calibrate", *arguments, "--out", str(tmp_path / "c.json")]) == 2
    assert message in capsys.readouterr().err
