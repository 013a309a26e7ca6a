"""Tests of `spotedit eval`: a killed run is continued, and unlike edits are not compared."""

import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from families import FAMILIES, each_family
from pie import make_pie, write_pie

from spotedit import SpotEditConfig
from spotedit.cli import main
from spotedit.evaluation import edits
from spotedit.evaluation.metrics import DISTANCES
from spotedit.evaluation.networks import Networks
from spotedit.evaluation.store import JsonLines

PICTURES, STEPS = 2, 4
KILLS = 3
CPU = torch.device("cpu")


def command(data: Path, out: Path, *further: object, steps: int = STEPS) -> list[str]:
    arguments = ["eval", data, "--out", out, "--model", "tiny", "--steps", steps]
    return [str(argument) for argument in (*arguments, "--device", "cpu", *further)]


def run(arguments: list[str]) -> None:
    sys.exit(main(arguments))


def lines_in(out: Path) -> int:
    return sum(path.read_bytes().count(b"}\n") for path in out.glob("*-*.jsonl"))


def kill_after(process, code: Callable[[], int | None], out: Path, lines: int, wait: float):
    """Kill the process once it has written `lines` rows and `wait` seconds have passed."""
    while lines_in(out) < lines:
        assert code() is None, "the run ended before it was killed"
        time.sleep(0.005)
    time.sleep(wait)
    process.kill()


def untimed(out: Path) -> list[dict]:
    """Return all rows, of edits and of figures, without their times."""
    rows = []
    for kind in ("rows", "metrics"):
        for row in JsonLines(out, kind).read().values():
            rows.append({k: v for k, v in row.items() if k not in ("seconds", "written")})
    return sorted(rows, key=lambda row: json.dumps(row, sort_keys=True))


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pie")
    make_pie(folder, PICTURES)
    return folder


@pytest.fixture(scope="module")
def start():
    """Return a function that starts the command in another process, with the imports made."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["spotedit.cli.eval", "spotedit.tiny.pipeline"])

    def process(arguments: list[str]):
        started = context.Process(target=run, args=(arguments,))
        started.start()
        return started

    return process


@pytest.fixture(scope="module")
def finished(data, start, tmp_path_factory) -> Path:
    """Return the output folder of a run that nothing interrupted."""
    out = tmp_path_factory.mktemp("finished")
    process = start(command(data, out))
    process.join()
    assert process.exitcode == 0
    return out


@pytest.fixture
def copy(finished, tmp_path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "out"))


# -- kill and resume


@pytest.mark.full
def test_a_run_killed_three_times_ends_with_the_same_rows(data, start, finished, tmp_path):
    moments = random.Random(0)
    total = lines_in(finished)
    assert total == 4 * PICTURES  # two modes, each with a row and a row of figures
    for lines in sorted(moments.sample(range(1, total - 2), KILLS)):
        process = start(command(data, tmp_path))
        code = partial(getattr, process, "exitcode")
        kill_after(process, code, tmp_path, lines, moments.uniform(0, 0.1))
        process.join()
        assert process.exitcode == -signal.SIGKILL
    process = start(command(data, tmp_path))
    process.join()
    assert process.exitcode == 0
    assert untimed(tmp_path) == untimed(finished)


@pytest.mark.full
def test_24_pictures_killed_three_times_as_users_run_it(tmp_path):
    make_pie(tmp_path / "pie", 24)
    program = [sys.executable, "-m", "spotedit.cli"]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    subprocess.run([*program, *command(tmp_path / "pie", whole)], check=True)
    moments = random.Random()
    for lines in sorted(moments.sample(range(1, 4 * 24 - 4), KILLS)):
        process = subprocess.Popen([*program, *command(tmp_path / "pie", broken)])
        kill_after(process, process.poll, broken, lines, moments.uniform(0, 0.3))
        assert process.wait() == -signal.SIGKILL
    subprocess.run([*program, *command(tmp_path / "pie", broken)], check=True)
    assert untimed(broken) == untimed(whole)


@pytest.mark.full
def test_two_processes_share_the_pictures(data, finished, tmp_path):
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m"]
    # the launcher would give each process one thread, which sums in another order
    threads = {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    subprocess.run(
        [*launch, "spotedit.cli", *command(data, tmp_path)], env=os.environ | threads, check=True
    )
    assert len(list(tmp_path.glob("rows-*.jsonl"))) == 2
    assert untimed(tmp_path) == untimed(finished)


def test_half_written_lines_are_left_out(tmp_path):
    first = JsonLines(tmp_path, "rows")
    first.append({"key": "a", "mode": "dense", "n": 1})
    with (tmp_path / "rows-0.jsonl").open("a") as file:
        file.write('{"key": "b", "mode": "den')
    first.append({"key": "c", "mode": "dense", "n": 2})
    assert {key: row["n"] for key, row in first.read().items()} == {
        ("a", "dense"): 1,
        ("c", "dense"): 2,
    }


def test_the_later_row_counts_whichever_process_wrote_it(tmp_path):
    for process, n in ((1, 1), (0, 2)):
        JsonLines(tmp_path, "rows", process).append({"key": "a", "mode": "dense", "n": n})
    assert JsonLines(tmp_path, "rows").read()["a", "dense"]["n"] == 2


def test_a_picture_that_is_gone_is_edited_anew(data, copy, finished):
    (copy / "spot" / "000000000001.png").unlink()
    assert main(command(data, copy)) == 0
    assert untimed(copy) == untimed(finished)


# -- only like with like


def test_another_loop_is_refused(data, copy, capsys):
    before = lines_in(copy)
    assert main(command(data, copy, steps=STEPS + 1)) == 2
    assert f"num_inference_steps = {STEPS}; expected {STEPS + 1}" in capsys.readouterr().err
    assert lines_in(copy) == before


@pytest.mark.parametrize(
    "change",
    [
        lambda row: row["settings"].update(seed=1),
        lambda row: row["settings"].update(guidance_scale=1.0),
        lambda row: row["settings"].update(scheduler="another one"),
        lambda row: row["settings"].update(offload="model"),
        lambda row: row.update(forwards=2 * STEPS),
        lambda row: row.update(size=[64, 64]),
    ],
)
def test_a_table_of_unlike_rows_is_refused(data, copy, capsys, change):
    row = JsonLines(copy, "rows").read()["000000000001", "spot"]
    change(row)
    JsonLines(copy, "rows").append(row)
    assert main(command(data, copy, "--score-only")) == 2
    error = capsys.readouterr().err
    assert "000000000001" in error
    assert "expected" in error or "not the same loop" in error


def test_another_number_of_threads_is_another_machine(data, copy, capsys):
    row = JsonLines(copy, "rows").read()["000000000001", "spot"]
    row["settings"]["threads"] = 3
    JsonLines(copy, "rows").append(row)
    assert main(command(data, copy)) == 2
    assert "threads = 3; expected 1" in capsys.readouterr().err  # the tiny editor has one


def test_rows_of_another_data_set_are_not_measured(data, copy, tmp_path, capsys):
    other = Path(shutil.copytree(data, tmp_path / "other"))
    rows = json.loads((other / "mapping_file.json").read_text())
    rows["000000000001"]["mask"] = [0, 9]
    write_pie(other, rows)
    assert main(command(other, copy, "--score-only")) == 2
    assert "name the data set that this folder belongs to" in capsys.readouterr().err


@each_family
def test_both_modes_of_every_family_run_the_same_loop(name):
    if "Modular" in name:
        pytest.skip("a modular pipeline is put together by its user; no command loads one")
    family, pipe = FAMILIES[name], FAMILIES[name].make(0)
    given = family.arguments(output_type="pil")
    image = given.pop("image")
    given.pop("generator", None)
    options = edits.call_options(pipe, image, None, given)  # embeddings stand for an instruction
    options = {k: v for k, v in options.items() if v is not None}
    dense, spot = (edits.edit(pipe, options, 0, config) for config in (None, SpotEditConfig()))
    assert dense.picture.size == spot.picture.size
    assert dense.forwards == spot.forwards == len(spot.report.steps)
    assert dense.report is None
    assert "spot" in {step["kind"] for step in spot.report.steps}


def test_both_modes_run_the_same_loop(finished):
    rows = JsonLines(finished, "rows").read()
    assert {row["forwards"] for row in rows.values()} == {STEPS}
    assert {row["r"] is None for (_, mode), row in rows.items() if mode == "dense"} == {True}
    assert all(0 < row["r"] < 1 for (_, mode), row in rows.items() if mode == "spot")


def test_figures_of_another_clip_model_are_taken_anew(data, copy, monkeypatch):
    def measured(model: str) -> list[tuple]:
        embed, absent = lambda *_: (torch.eye(3), torch.ones(3)), dict.fromkeys(DISTANCES, "gone")
        networks = Networks({}, embed, model, absent, CPU)
        monkeypatch.setattr("spotedit.cli.eval.networks", lambda *_: networks)
        assert main(command(data, copy, "--score-only")) == 0
        return [(row["clip"], row["written"]) for row in JsonLines(copy, "metrics").read().values()]

    first = measured("one")
    assert {model for model, _ in first} == {"one"}
    assert measured("one") == first
    assert {model for model, _ in measured("two")} == {"two"}


def test_a_replaced_picture_is_not_measured(data, copy, capsys):
    for path in copy.glob("metrics-*.jsonl"):
        path.unlink()
    shutil.copy(copy / "dense" / "000000000001.png", copy / "spot" / "000000000001.png")
    assert main(command(data, copy, "--score-only")) == 2
    assert "run the edit again" in capsys.readouterr().err


# -- the table and the exchange with a judge


def cells(text: str, name: str) -> list[str]:
    (line,) = (line for line in text.splitlines() if line.startswith(f"| {name}"))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_the_table_has_the_papers_columns(finished):
    text = (finished / "table.md").read_text()
    header = ["method", "speed-up", "CLIP", "SSIM", "PSNR", "DISTS", "VL score", "r", "work saved"]
    assert cells(text, "method") == header
    dense, spot = cells(text, "TinyKontextPipeline"), cells(text, "SpotEdit")
    rows, metrics = JsonLines(finished, "rows").read(), JsonLines(finished, "metrics").read()
    seconds = [
        sum(row["seconds"] for (_, mode), row in rows.items() if mode == name)
        for name in ("dense", "spot")
    ]
    assert dense[1] == "1.00"
    assert spot[1] == f"{seconds[0] / seconds[1]:.2f}"
    psnr = [row["values"]["psnr"] for (_, mode), row in metrics.items() if mode == "spot"]
    assert spot[4] == f"{sum(psnr) / len(psnr):.4g}"
    assert dense[6] == "no scores"
    assert dense[7:] == ["-", "-"]
    for name, field in (("r", 7), ("flops_saved", 8)):
        shares = [row[name] for (_, mode), row in rows.items() if mode == "spot"]
        assert spot[field] == f"{sum(shares) / len(shares):.1%}"
    one = cells(text, "1 | spot")  # all are of one category
    assert one == ["1", "spot", str(PICTURES), spot[1], spot[7], spot[4], "no scores"]


def test_scores_come_back_from_a_judge(data, copy, capsys):
    assert main(command(data, copy, "--score-only", "--prompts")) == 0
    prompts = [json.loads(line) for line in (copy / "prompts.jsonl").read_text().splitlines()]
    assert len(prompts) == 2 * PICTURES
    for prompt in prompts:
        assert prompt["instruction"]
        assert (copy / prompt["source"]).is_file()
        assert (copy / prompt["picture"]).is_file()
    given = [{"key": p["key"], "mode": p["mode"], "score": 4} for p in prompts]
    given[0]["score"], given[1]["key"], given[3]["score"] = 9, "nobody", [5, 4, 4.5]
    with (copy / "scores.jsonl").open("w") as file:
        file.writelines(json.dumps(line) + "\n" for line in [*given, "x"])
        file.write("half a li")
    capsys.readouterr()
    assert main(command(data, copy, "--score-only")) == 0
    out = capsys.readouterr().out
    assert cells(out, "SpotEdit")[6] == "4.5 (n = 1; 1 no scores)"
    assert "line 1: score 9; expected 1 to 5" in out
    assert "line 2: no such picture" in out
    assert out.count("not a line of key, mode and score") == 2


# -- what is wrong is reported and counted


def test_absent_metrics_are_named_before_the_edits(data, tmp_path, monkeypatch, capsys):
    def stop(*args):
        raise KeyboardInterrupt

    absent = {"ssim": "no torchmetrics"}
    monkeypatch.setattr(
        "spotedit.cli.eval.networks", lambda *_: Networks({}, None, "none", absent, CPU)
    )
    monkeypatch.setattr("spotedit.cli.eval.load", stop)
    assert main(command(data, tmp_path / "out")) == 130
    assert "ssim will not be measured: no torchmetrics" in capsys.readouterr().err


def test_problems_are_counted_and_the_run_goes_on(tmp_path, capsys):
    rows = make_pie(tmp_path, 3)
    keys = list(rows)
    rows[keys[0]]["editing_type_id"] = "no type"
    rows[keys[1]]["mask"] = []
    (tmp_path / "mapping_file.json").write_text(json.dumps(rows))
    damaged = tmp_path / "annotation_images" / rows[keys[2]]["image_path"]
    damaged.write_bytes(damaged.read_bytes()[:2000])
    assert main(command(tmp_path, tmp_path / "out", steps=2)) == 0
    out, error = capsys.readouterr()
    assert f"skipped {keys[0]}: editing_type_id" in error
    assert "2 pictures to edit, 1 with all edits" in out
    assert "1 rows of the data set skipped, 2 edits refused" in out
    assert "mask is empty, 1 times: the empty part is not measured" in out
    assert float(cells(out, "psnr_unedit_part")[1]) > 0
    assert cells(out, "psnr_edit_part")[1:] == ["mask is empty"] * 2
    assert f"{keys[2]}, dense: " in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--score-only"], "nothing has been edited"),
        (["--model", "a/b/c"], "no such folder"),
    ],
)
def test_nothing_to_show(data, tmp_path, capsys, arguments, message):
    assert main(command(data, tmp_path / "out", *arguments)) in (1, 2)
    assert message in capsys.readouterr().err


def test_an_option_that_the_pipeline_does_not_take(data, tmp_path, capsys, monkeypatch):
    from spotedit.tiny import TinyKontextPipeline

    signature = TinyKontextPipeline.__call__.__signature__
    fewer = [p for name, p in signature.parameters.items() if name != "true_cfg_scale"]
    monkeypatch.setattr(
        TinyKontextPipeline.__call__, "__signature__", signature.replace(parameters=fewer)
    )
    assert main(command(data, tmp_path / "out", "--true-cfg", 4)) == 2
    assert "true_cfg_scale" in capsys.readouterr().err


def test_a_model_must_be_named(data, tmp_path, capsys):
    assert main(["eval", str(data), "--out", str(tmp_path)]) == 2
    assert "--model" in capsys.readouterr().err
