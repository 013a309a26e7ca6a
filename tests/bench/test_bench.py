"""Test the benches' arithmetic on known arrays, and their commands on a random pipeline."""

import itertools
import json
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from small_kontext import call_arguments, random_kontext

import spotedit
from bench import (
    convergence,
    edits,
    environment,
    kontext,
    metrics,
    modes,
    pipeline,
    profile_step,
    rows,
    speed,
    timing,
    unfused,
)
from spotedit.engine import processor
from spotedit.engine.patch import owner_of
from spotedit.engine.session import Session
from spotedit.evaluation import quality

GRID = (4, 5)
SIZE = {"height": 48, "width": 64, "max_area": 48 * 64}
NUM_NOISE = 48  # tokens of such a picture, 6 x 8


def test_psnr_of_a_known_difference():
    a = np.full((4, 4, 3), 100, dtype=np.uint8)
    b = a.copy()
    b[0] = 110
    mask = np.zeros((4, 4), dtype=bool)
    mask[:2] = True  # half of its pixels differ by 10, so the mean squared difference is 50
    assert quality.psnr(a, b, mask) == pytest.approx(10 * np.log10(255**2 / 50))
    assert quality.psnr(a, b, ~mask) == float("inf")
    assert np.isnan(quality.psnr(a, b, np.zeros_like(mask)))


@pytest.mark.parametrize(
    ("scores", "expected"),
    [([0, 1, 2, 3], 1.0), ([3, 2, 1, 0], 0.0), ([1, 1, 1, 1], 0.5), ([0, 2, 2, 3], 0.875)],
)
def test_auc_counts_the_pairs_in_order(scores, expected):
    truth = np.array([False, False, True, True])
    assert metrics.auc(np.array(scores, dtype=float), truth) == expected
    assert np.isnan(metrics.auc(np.array(scores, dtype=float), np.zeros(4, dtype=bool)))


def test_rank_correlation_depends_on_order_only():
    a = np.array([0.1, 0.2, 0.2, 5.0])
    assert metrics.rank_correlation(a, np.exp(a)) == pytest.approx(1)
    assert metrics.rank_correlation(a, -a) == pytest.approx(-1)
    # ranks 1, 2.5, 2.5, 4 and 1, 3, 2, 4
    assert metrics.rank_correlation(a, np.array([0, 2, 1, 3])) == pytest.approx(4.5 / 22.5**0.5)
    assert np.isnan(metrics.rank_correlation(a, np.ones(4)))


def test_auc_equals_counting_all_pairs():
    rng = np.random.default_rng(0)
    scores, truth = rng.integers(8, size=60), rng.random(60) < 0.3
    pairs = np.subtract.outer(scores[truth], scores[~truth])
    assert metrics.auc(scores, truth) == pytest.approx(np.mean((pairs > 0) + 0.5 * (pairs == 0)))


def test_bootstrap_is_seeded_and_has_the_width_of_the_standard_error():
    values = np.random.default_rng(0).normal(3, 2, size=400)
    mean, low, high = metrics.bootstrap(values)
    assert (mean, low, high) == metrics.bootstrap(values)
    assert mean == pytest.approx(values.mean())
    assert high - low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.05)


def test_background_keeps_a_margin_of_whole_tokens():
    region = np.zeros((8, 9), dtype=bool)
    region[4, 4] = True
    far = quality.background(region, (16, 18))
    expected = np.ones((8, 9), dtype=bool)
    expected[2:7, 2:7] = False
    assert np.array_equal(far, expected.repeat(2, axis=0).repeat(2, axis=1))


def test_changed_share_of_each_token():
    mask = np.zeros((8, 10), dtype=bool)
    mask[0, 0] = mask[2:4, 2:4] = True
    share = metrics.changed_share(mask, GRID)
    assert share[0, 0] == 0.25
    assert share[1, 1] == 1
    assert share.sum() == 1.25


def test_convergence_step_is_the_first_after_which_distances_stay_small():
    distances = np.array([[9, 9, 0, 9], [0, 9, 0, 0], [9, 0, 0, 0], [0, 0, 0, 9]], dtype=float)
    assert metrics.convergence_step(distances, 1).tolist() == [3, 2, 0, 4]


def test_rows_are_written_with_targets_and_without_nan(tmp_path):
    listed = [
        rows.Row.median("time", [1.0, 3.0, 2.0], "ms", parameters={"px": 128}),
        rows.Row("ratio", 1.9, "x", at_least=2.0, parameters={"r": "25%"}),
        rows.Row("nothing", float("nan"), "dB"),
    ]
    text = rows.save("sample", listed, environment.describe(), ["A note."], tmp_path)
    assert "| time | 128 |  | 2 [1.4, 2.6] | ms | 3 |  |" in text
    assert "| ratio |  | 25% | 1.9 | x | 1 | >= 2: MISSED |" in text
    assert (tmp_path / "sample.md").read_text() == text
    data = json.loads((tmp_path / "sample.json").read_text())
    assert [row["value"] for row in data["rows"]] == [2.0, 1.9, None]
    assert data["rows"][1]["met"] is False
    assert {"commit", "torch", "cpu", "date"} <= set(data["environment"])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["sample.json", "sample.md"]


def test_the_variable_commit_overrides_the_checkout(monkeypatch):
    """A working tree that was copied to another machine may lie in a different repository."""
    monkeypatch.setenv("COMMIT", "0123456789ab")
    assert environment.describe()["commit"] == "0123456789ab"
    monkeypatch.delenv("COMMIT")
    monkeypatch.setattr(environment, "_output", lambda *command: command[1])
    assert environment.commit() == "rev-parse+"
    monkeypatch.setattr(environment, "_output", lambda *command: "")
    assert environment.commit() == "unknown"


@pytest.mark.parametrize("ratio", [0.05, 0.25, 1.0])
def test_the_rectangle_has_about_the_ratio(ratio):
    assert speed.rectangle((32, 32), ratio).mean() == pytest.approx(ratio, rel=0.15)


def test_estimates_of_a_trace_equal_those_from_the_transformers_velocity():
    pipe = random_kontext()
    forwards = []

    def record(module, args, kwargs, output):
        forwards.append((kwargs["hidden_states"], output[0]))

    hook = pipe.transformer.register_forward_hook(record, with_kwargs=True)
    with edits.traced(pipe) as (trace, callback):
        pipe(**call_arguments(**SIZE), **callback)
    hook.remove()
    estimates = trace.estimates()
    assert len(estimates) == len(forwards) == 8
    sigmas = trace.sigmas[:8]
    for (hidden, velocity), sigma, estimate in zip(forwards, sigmas, estimates, strict=True):
        expected = (hidden - sigma * velocity)[:, :NUM_NOISE]
        assert torch.allclose(estimate, expected, atol=1e-4)
    assert torch.equal(trace.source, forwards[0][0][:, NUM_NOISE:])


def test_timed_parts_leaves_nothing_behind():
    pipe = random_kontext()
    before = type(pipe.transformer), set(vars(pipe.vae)), Session.scheduler_step
    with timing.timed_parts(pipe) as watch:
        pipe(**call_arguments(**SIZE, output_type="pil"))
    assert (type(pipe.transformer), set(vars(pipe.vae)), Session.scheduler_step) == before
    assert len(watch.seconds(timing.TRANSFORMER)) == 8
    assert len(watch.seconds(timing.DECODE)) == 1
    assert watch.seconds(timing.SELECT) == []


def test_the_time_of_a_spot_step_includes_gathering_and_scattering():
    """The stopwatch times the session's forward, not the shorter one of the transformer in it."""
    pipe = random_kontext()
    handle = spotedit.enable(pipe)
    handle.set_mask(torch.arange(8).expand(6, 8) < 2, mode="replace")
    stock_forward, widen, delay = pipe.transformer.forward, Session._fill_reused_tokens, 0.02
    num_rows = []

    def forward(**kwargs):
        num_rows.append(kwargs["hidden_states"].shape[1])
        return stock_forward(**kwargs)

    def widen_slowly(*args):
        time.sleep(delay)
        return widen(*args)

    pipe.transformer.forward = forward

    with timing.timed_parts(pipe) as watch, pytest.MonkeyPatch.context() as patched:
        patched.setattr(Session, "_fill_reused_tokens", widen_slowly)
        pipe(**call_arguments())
        assert watch.sequence == 5 + NUM_NOISE + NUM_NOISE  # prompt, noise, condition
    kinds = [step["kind"] for step in handle.report.steps]
    seconds = watch.seconds(timing.TRANSFORMER)
    assert num_rows == [12 if kind == "spot" else 2 * NUM_NOISE for kind in kinds]
    assert len(seconds) == len(kinds)
    assert all(s >= delay for s, kind in zip(seconds, kinds, strict=True) if kind == "spot")


def row_names(folder, bench):
    """Read the names of the rows that a bench has written."""
    return [row["name"] for row in json.loads((folder / f"{bench}.json").read_text())["rows"]]


def test_speed_command(random_editor, tmp_path):
    speed.main(["--sizes", "64", "--steps", "7", "8", "--out", str(tmp_path)])
    names = row_names(tmp_path, "speed")
    assert names.count("whole edit, dense / spot") == 6  # three modes, two numbers of steps
    assert names.count("share of S/M") == 3
    assert names.count("judge's share") == 2


def test_speed_of_an_edit_without_a_spot_step(random_editor, tmp_path):
    speed.main(["--sizes", "64", "--steps", "1", "--out", str(tmp_path)])
    rows = json.loads((tmp_path / "speed.json").read_text())["rows"]
    spot = [row for row in rows if row["parameters"]["mode"] == speed.DEFAULT]
    assert {row["parameters"]["r"] for row in spot} == {"no spot step"}
    values = {row["name"]: row["value"] for row in spot}
    for name in ("S/M", "transformer, dense / spot step", "share of S/M"):
        assert values[name] is None
    assert values["transformer, dense step"] > 0
    assert values["whole edit, dense / spot"] > 0


def test_convergence_command(random_editor, tmp_path):
    figure = tmp_path / "figure.png"
    command = ["--scenes", "1", "--shown", "0", "--steps", "7"]
    convergence.main([*command, "--figure", str(figure), "--out", str(tmp_path)])
    assert figure.stat().st_size > 10_000
    assert "AUC of the score, first judgement" in row_names(tmp_path, "convergence")


@pytest.mark.parametrize("fusion", ["cosine", lambda sigma: 1.0])
def test_the_unfused_baseline_equals_the_spot_path(monkeypatch, fusion):
    """The active set shrinks, and there are resets."""
    order = torch.randperm(48, generator=torch.Generator().manual_seed(5))

    def judge(y, grid, features, impl):
        counts = itertools.cycle([30, 20, 20, 7])
        return lambda x0: (order < next(counts)).float()[None]

    pipe = random_kontext()
    spotedit.enable(
        pipe, preset="paper", judge=judge, threshold=0.5, fusion=fusion, initial_steps=2
    )
    ours = pipe(**call_arguments())
    calls = []
    joint = unfused.joint
    monkeypatch.setattr(unfused, "joint", lambda *args: calls.append(0) or joint(*args))
    with unfused.unfused():
        theirs = pipe(**call_arguments())
    assert len(calls) == 4 * 4 * 2  # spot steps, layers, keys and values
    assert ((theirs.images - ours.images).norm() / ours.images.norm()) <= 1e-4


PIPELINE = ["--size", "tiny", "--device", "cpu", "--dtype", "float32", "--backend", "eager"]
PIPELINE += ["--layers", "1", "1", "--steps", "4", "--ratio", "0.25", "1", "--judge", "0.25"]
PIPELINE += ["--unfused", "0.25", "--profile"]


@pytest.mark.full
def test_pipeline_command(tmp_path):
    pipeline.main([*PIPELINE, "0.25", "--out", str(tmp_path)])
    written = json.loads((tmp_path / "pipeline.json").read_text())
    listed, ran = written["rows"], set(modes.KINDS) - {modes.SPOT_GRAPH}
    seen = {(row["name"], row["parameters"]["mode"]) for row in listed}
    assert {("whole edit", mode) for mode in ran} <= seen
    assert f"`{modes.SPOT_GRAPH}` was not run" in written["notes"][-1]
    assert {("transformer, first step at a new M", "spot")} <= seen
    for mode in ran & set(modes.BASELINES):
        baselines = modes.BASELINES[mode]
        assert {("share of S/M", mode), ("cache", mode)} <= seen
        ratios = [row["parameters"] for row in listed if row["name"] == "step, baseline / this"]
        assert {at["baseline"] for at in ratios if at["mode"] == mode} == set(baselines)
    assert ("one judgement", "spot + judge") in seen
    check_profile(json.loads((tmp_path / "pipeline-profile.json").read_text())["rows"])


def check_profile(listed):
    """Check the profile of one spot step in each spot mode, on a CPU."""
    for mode in (modes.SPOT, modes.SPOT_COMPILED):
        of_mode = [row for row in listed if row["parameters"].get("mode") == mode]
        values = {row["name"]: row["value"] for row in of_mode}
        assert 0 < values["profile: host"] <= values["profile: step"]
        assert values["profile: busy"] > 0
        assert values["profile: launches"] > 100
        kernels = {row["parameters"]["kernel"] for row in of_mode if row["name"] == "kernel"}
        assert "aten::addmm" in kernels
    first = [row for row in listed if row["name"] == "attention: first call at a new M"]
    assert [row["samples"] for row in first] == [5]


@pytest.mark.full
def test_the_compiled_twin_shares_the_weights():
    torch._dynamo.reset()  # other tests compile the same blocks
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    shape = kontext.SHAPES["tiny"]
    pipe = kontext.build(shape, "cpu", torch.float32)
    twin = kontext.compiled(pipe, backend)
    pairs = zip(pipe.transformer.parameters(), twin.transformer.parameters(), strict=True)
    assert all(a.data_ptr() == b.data_ptr() for a, b in pairs)
    stock, compiled = (
        p(**kontext.arguments(shape, "cpu", torch.float32, 2), output_type="latent").images
        for p in (pipe, twin)
    )
    assert 2 <= len(graphs) < 4  # two kinds of blocks, two of each
    assert torch.allclose(compiled, stock, atol=1e-5)


def test_pipeline_measures_only_the_stock_modes_if_our_edits_are_wrong(tmp_path, monkeypatch):
    joint = unfused.joint
    monkeypatch.setattr(unfused, "joint", lambda *args: joint(*args).roll(1, dims=1))
    with pytest.raises(SystemExit, match=r"unfused, torch\.float32: relative error"):
        pipeline.main([*PIPELINE, "--out", str(tmp_path)])
    written = json.loads((tmp_path / "pipeline.json").read_text())
    measured = {row["parameters"]["mode"] for row in written["rows"]}
    assert measured == {modes.EAGER, modes.COMPILED}
    assert any(note.startswith("FAILED: unfused") for note in written["notes"])


def test_pipeline_continues_without_the_modes_that_fail(tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(pipeline.identity, "faults", lambda *args: [])
    monkeypatch.setattr(processor, "attend", fail)
    with pytest.raises(SystemExit, match=r"^spot, r = 25%: RuntimeError\('no such kernel'\)"):
        pipeline.main([*PIPELINE, "--out", str(tmp_path)])
    names = row_names(tmp_path, "pipeline")
    assert names.count("whole edit") == 3  # dense eager and compiled, unfused
    assert names.count("whole edit, baseline / this") == 2
    notes = json.loads((tmp_path / "pipeline.json").read_text())["notes"]
    assert "FAILED: spot, r = 25%: RuntimeError('no such kernel')" in notes


def test_pipeline_keeps_the_rows_of_every_edit_before_a_failure(tmp_path, monkeypatch):
    """A spot mode fails in its second timed edit and leaves the pipeline enabled."""
    run = pipeline.run
    calls, saved = [], []

    def fail_late(pipes, case, steps, samples):
        assert owner_of(pipes.eager) is None
        path = tmp_path / "pipeline.json"
        saved.append(row_names(tmp_path, "pipeline").count("whole edit") if path.exists() else 0)
        calls.append(case)
        if case[0] == modes.SPOT and calls.count(case) == 3:  # after a warm-up and an edit
            spotedit.enable(pipes.eager)
            raise RuntimeError("out of memory")
        run(pipes, case, steps, samples)

    monkeypatch.setattr(pipeline.identity, "faults", lambda *args: [])
    monkeypatch.setattr(pipeline, "run", fail_late)
    monkeypatch.setattr(pipeline, "NEW_RATIOS", {})
    command = [*PIPELINE, "--ratio", "0.25", "--judge", "--unfused", "--out", str(tmp_path)]
    with pytest.raises(SystemExit, match=r"^spot, r = 25%: RuntimeError\('out of memory'\)$"):
        pipeline.main(command)
    assert saved[:8] == [0, 0, 1, 1, 2, 2, 3, 3]  # each mode has a warm-up and an edit
    listed = json.loads((tmp_path / "pipeline.json").read_text())["rows"]
    edits = {r["parameters"]["mode"]: r["samples"] for r in listed if r["name"] == "whole edit"}
    assert edits == {
        modes.EAGER: 2, modes.SPOT: 1, modes.COMPILED: 2, modes.SPOT_COMPILED: 2,
    }  # fmt: skip


def test_pipeline_ends_after_its_seconds_with_an_edit_of_every_mode(tmp_path, monkeypatch):
    monkeypatch.setattr(pipeline.identity, "faults", lambda *args: [])
    monkeypatch.setattr(pipeline, "NEW_RATIOS", {})
    monkeypatch.setattr(pipeline, "cases", lambda *args: [(modes.EAGER, 1), (modes.SPOT, 0.25)])
    pipeline.main([*PIPELINE, "--seconds", "0", "--out", str(tmp_path)])
    listed = json.loads((tmp_path / "pipeline.json").read_text())["rows"]
    assert [row["samples"] for row in listed if row["name"] == "whole edit"] == [1, 1]


def test_a_profile_counts_what_ran_on_the_device():
    def event(name, device, microseconds, annotation=False):
        return SimpleNamespace(
            name=name, device_type=device, is_user_annotation=annotation,
            self_cpu_time_total=microseconds,
            time_range=SimpleNamespace(elapsed_us=lambda: microseconds),
        )  # fmt: skip

    cpu, cuda = torch.autograd.DeviceType.CPU, torch.autograd.DeviceType.CUDA
    events = [event("gemm", cuda, 30), event("gemm", cuda, 10), event("copy", cuda, 5),
              event("aten::mm", cpu, 7), event("a region", cuda, 99, True)]  # fmt: skip
    seconds = profile_step.kernel_seconds(events, cuda=True)
    assert seconds == {"gemm": [30e-6, 10e-6], "copy": [5e-6]}
    assert profile_step.kernel_seconds(events[3:4], cuda=False) == {"aten::mm": [7e-6]}


def test_pipeline_targets_apply_to_the_compiled_baseline():
    def samples_of(kind, seconds):
        return modes.Measured(
            edits={28: [28 * seconds]}, forwards={kind: [seconds]}, judgements=[0.0],
            noise=4096, active=819, sequence=8704,
        )  # fmt: skip

    samples = {
        (modes.EAGER, 1.0): samples_of("dense", 2.0),
        (modes.COMPILED, 1.0): samples_of("dense", 1.0),
        (modes.JUDGED, 0.2): samples_of("spot", 0.2),
        (modes.SPOT_COMPILED, 0.2): samples_of("spot", 0.25),
    }
    goals = [row for row in modes.result_rows(samples, True) if row.met is not None]
    assert [(row.name, row.at_least, row.met) for row in goals] == [
        ("share of S/M", 0.75, True),  # 5 of 6.54
        ("whole edit, baseline / this", 2.7, True),
        ("share of S/M", 0.75, False),  # 4 of 6.54
    ]
    assert all(row.parameters["baseline"] == modes.COMPILED for row in goals)
    assert not any(row.met for row in modes.result_rows(samples, False))
    samples[modes.JUDGED, 0.2].active = None  # every step was full
    samples[modes.JUDGED, 0.2].forwards = {"full": [1.0]}
    rows = [
        row for row in modes.result_rows(samples, True) if row.parameters["mode"] == modes.JUDGED
    ]
    assert {row.parameters["r"] for row in rows} == {speed.NO_SPOT_STEP}
    assert "step, baseline / this" not in {row.name for row in rows}
