"""Tests of `bench.quality`: statistics of known numbers, ablations, and interrupted runs."""

import json
import sys
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from small_kontext import call_arguments, random_kontext

import spotedit
from bench import edits
from bench.quality import __main__ as command
from bench.quality import (
    ablations,
    collect,
    gate,
    paper,
    results,
    rivals,
    statistics,
    texts,
    variants,
    worst,
)
from bench.quality.measures import Truth
from bench.quality.record import Setting, counted_work, edit
from bench.quality.variants import VARIANTS, Variant
from bench.rows import RESULTS
from spotedit.engine import forwards
from spotedit.engine.cache import BlendInputs, CachedRows, LayerCache, SequenceLayout
from spotedit.evaluation.networks import Networks, networks
from spotedit.tiny.scenes import KINDS


def test_scenes_have_edits_of_all_sizes():
    scenes = [edits.varied(seed) for seed in range(24)]
    assert [scene.kind for scene in scenes] == [KINDS[seed % 4] for seed in range(24)]
    areas = [scene.mask.mean() for scene in scenes if scene.kind != "add"]
    assert min(areas) < 0.05
    assert max(areas) > 0.35


# -- statistics


def records(**figures):
    """Return records by seed from one list of values for each figure."""
    num_records = len(next(iter(figures.values())))
    return {
        str(seed): {name: values[seed] for name, values in figures.items()}
        for seed in range(num_records)
    }


def test_differences_are_paired_by_seed_and_skip_what_is_missing():
    ours = records(edit_db=[20.0, 21.0, None, 25.0])
    theirs = records(edit_db=[21.0, 21.5, 20.0, 40.0]) | {"3": {}}
    difference = statistics.paired(ours, theirs, "edit_db")
    assert (difference.mean, difference.samples) == (-0.75, 2)
    assert (difference.low, difference.high) == (-1.0, -0.5)
    assert statistics.mean(ours, "edit_db").mean == 22.0
    assert np.isnan(statistics.mean(ours, "edit_ssim").mean)


@pytest.mark.parametrize(
    ("figure", "shift", "expected"),
    [("edit_db", -1.0, True), ("edit_db", 1.0, False), ("seam_excess", 1.0, True),
     ("seam_excess", -1.0, False), ("edit_db", 0.0, False)],
)  # fmt: skip
def test_worse_is_an_interval_on_the_bad_side(figure, shift, expected):
    noise = np.random.default_rng(0).normal(0, 1, 50)
    noise -= noise.mean()
    assert statistics.worse(statistics.estimate((noise + shift).tolist()), figure) is expected
    assert not statistics.worse(statistics.estimate([shift] * 3), figure)  # 3 samples are too few


def test_the_gate_names_the_mildest_degree_that_is_detected_and_the_blind_measures():
    def variant_records(change_db):
        noise = np.random.default_rng(1).normal(0, 0.1, 20)
        return records(edit_db=list(20 + change_db + noise), recall=[1.0] * 20)

    table = {name: variant_records(0) for name in ("default", *gate.VARIANTS)}
    table["naive"] = variant_records(-1)
    table["threshold x4"] = table["threshold x8"] = variant_records(-0.5)
    differences = gate.differences(table)
    seen = {kind: gate.seen_by(bad, differences) for kind, bad in gate.KINDS.items()}
    assert seen["reused tokens left out of attention"] == ("naive", ["edit_db"])
    assert seen["threshold"] == ("threshold x4", ["edit_db"])
    assert seen["no token replacement"] == ("unreplaced", [])
    verdicts = "\n".join(gate.verdicts(differences))
    assert "threshold x4 is detected" in verdicts
    assert "not detected: threshold x2" in verdicts
    assert "no token replacement: NOT DETECTED" in verdicts
    assert "recall does not detect any" in verdicts
    met = [row.met for row in gate.rows(differences) if row.name == gate.SEEN]
    assert met == [True, True, False, False]


# -- ablations


def mask_of(columns):
    return torch.arange(8).expand(6, 8) < columns


def edited_latents(ablation=nullcontext, **config):
    pipe = random_kontext()
    spotedit.enable(pipe, **config).set_mask(mask_of(3), mode="replace")
    with ablation():
        return pipe(**call_arguments()).images


def test_naive_attention_does_not_see_what_the_reused_tokens_hold():
    configs = ({"fusion": lambda sigma: 1.0}, {"fusion": lambda sigma: 0.0})
    naive = [edited_latents(ablations.naive, **config) for config in configs]
    complete = [edited_latents(**config) for config in configs]
    assert torch.equal(*naive)
    assert not torch.allclose(*complete, atol=1e-4)
    assert not torch.allclose(naive[0], complete[0], atol=1e-4)


def test_recursion_equals_one_made_by_hand():
    layout = SequenceLayout(num_prompt=1, num_noise=3, source_start=3, num_tokens=7)
    heads = (2, 4)
    generator = torch.Generator().manual_seed(0)

    def rows(count):
        return CachedRows(torch.randn(1, count, *heads, generator=generator))

    cache = LayerCache(rows(7), rows(7), BlendInputs(rows(3), rows(3), rows(3)))
    stale, none = torch.tensor([0, 2]), torch.tensor([], dtype=torch.int64)
    k, k_ref = cache.blend_inputs.k.data.clone(), cache.blend_inputs.k_ref.data
    v, v_ref = cache.blend_inputs.v.data.clone(), cache.v.data[:, 4:]
    with ablations.recursive():
        for weight in (0.1, 0.5, 0.8):
            forwards.blend(cache, layout, none, stale, weight, "reference")
            k = weight * k + (1 - weight) * k_ref
            v = weight * v + (1 - weight) * v_ref
    assert torch.allclose(cache.k.data[:, layout.noise][:, stale], k[:, stale], atol=1e-6)
    assert torch.allclose(cache.v.data[:, layout.noise][:, stale], v[:, stale], atol=1e-6)


def test_without_replacement_reused_tokens_keep_the_latents_of_the_first_spot_step():
    pipe = random_kontext()
    spotedit.enable(pipe, reset_steps=()).set_mask(mask_of(3), mode="replace")
    with ablations.unreplaced(), edits.traced(pipe) as (trace, extra):
        pipe(**call_arguments(), **extra)
    states, reused = trace.states, ~mask_of(3).flatten()
    assert torch.allclose(states[-1][:, reused], states[1][:, reused], atol=1e-4)
    assert not torch.allclose(states[-1][:, reused], trace.source[:, reused], atol=0.1)


def test_a_shifted_region_lies_two_tokens_to_the_right():
    def scores(ablation):
        pipe = random_kontext()
        handle = spotedit.enable(pipe, judge="l2", reset_steps=(), judge_every=8)
        with ablation():
            pipe(**call_arguments())
        return handle.report.scores

    plain, shifted = scores(nullcontext), scores(ablations.shifted)
    assert np.allclose(np.roll(plain, ablations.SHIFT, axis=1), shifted, atol=1e-5)
    assert not np.allclose(plain, shifted, atol=1e-3)


# -- edits of the tiny editor


@pytest.fixture(scope="module")
def tiny():
    setting = Setting(steps=4)
    pipe = setting.load()
    truth = Truth(pipe, edits.varied(0), 0, networks(pipe.device, names=()))
    return setting, pipe, truth, *edit(pipe, setting, Variant(None), truth, None)


def test_a_picture_equal_to_the_truth_has_the_best_figures(tiny):
    truth, dense = tiny[2], tiny[3]
    perfect = truth.figures(truth.scene.target, dense, truth.touched_and_ring)
    assert perfect["edit_db"] is None  # it would be infinite
    assert perfect["edit_ssim"] == pytest.approx(1)
    assert perfect["edit_features"] == pytest.approx(0, abs=1e-6)
    assert perfect["to_truth"] == perfect["seam"] == 0
    assert perfect["recall"] == 1
    assert (
        perfect["active_per_needed"]
        <= perfect["active_per_touched_and_ring"]
        == 1
        < perfect["active_per_touched"]
    )
    outside = truth.figures(truth.scene.source, dense, ~truth.touched_and_ring)
    assert outside["edit_ssim"] < 0.99
    assert outside["edit_features"] > 0.05
    assert outside["recall"] == outside["precision"] == 0
    one_token = np.zeros_like(truth.edited)
    one_token[tuple(np.argwhere(truth.edited)[truth.edited.sum() // 2])] = True
    inside = truth.figures(truth.scene.source, dense, one_token)
    assert inside["precision"] == 1
    assert inside["seam_excess"] > 5


def test_networks_see_the_edited_region_alone(tiny):
    truth = tiny[2]

    def num_different_pixels(a, b):
        return (a != b).any(dim=1).sum()

    distances = Networks({"lpips": num_different_pixels}, None, "", {}, torch.device("cpu"))
    truth = Truth(tiny[1], truth.scene, 0, distances)
    inverted = 255 - truth.scene.target
    figures = truth.figures(inverted, None, None)
    assert figures["edit_lpips"] == truth.scene.mask.sum()
    assert figures["edit_dists"] is None


def test_spot_edits_and_rivals_skip_work_and_dense_edits_are_reproducible(tiny):
    setting, pipe, truth, dense, dense_figures = tiny
    for name in ("default", "PyramidAttentionBroadcast", "FasterCache"):
        _, figures = edit(pipe, setting, VARIANTS[name], truth, dense)
        assert figures["work"] < dense_figures["work"], name
        assert figures["same_db"] > 20, name
    again, figures = edit(pipe, setting, Variant(None), truth, None)
    assert np.array_equal(again, dense)
    assert figures | {"seconds": 0} == dense_figures | {"seconds": 0}


def test_work_is_what_the_linear_layers_multiply():
    layers = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.ReLU(), torch.nn.Linear(5, 2))
    with counted_work(layers) as work:
        layers(torch.zeros(2, 7, 3))
    layers(torch.zeros(2, 7, 3))
    assert work == [14 * (3 * 5 + 5 * 2)]


# -- runs

RUN = ["--scenes", "2", "--steps", "7", "--variants", "default", "naive", "paste, spot's region"]
TIMES = ("seconds", "written")


def stored(folder):
    (work,) = folder.iterdir()
    rows = collect.JsonLines(work, "records").read()
    return {place: {k: v for k, v in row.items() if k not in TIMES} for place, row in rows.items()}


@pytest.mark.full
def test_an_interrupted_run_continues_and_ends_with_the_same_records(
    random_editor, tmp_path, monkeypatch
):
    def run(name):
        command.main([*RUN, "--work", str(tmp_path / name), "--out", str(tmp_path)])

    run("whole")
    calls, real = [], collect.edit

    def interrupted(*args):
        calls.append(args)
        if len(calls) in (2, 5):
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(collect, "edit", interrupted)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            run("interrupted")
        (work,) = (tmp_path / "interrupted").iterdir()
        with (work / "records-0.jsonl").open("a") as file:
            file.write('{"key": "0", "mo')  # a killed process leaves such a line
    run("interrupted")
    assert len(calls) == 2 * 3 + 2
    assert stored(tmp_path / "interrupted") == stored(tmp_path / "whole")
    assert len(stored(tmp_path / "interrupted")) == 2 * 4
    results = json.loads((tmp_path / "quality.json").read_text())
    methods = {row["parameters"].get("method") for row in results["rows"]}
    assert methods == {"dense", "default", "naive", "paste, spot's region"}


def test_a_changed_variant_is_measured_again(random_editor, tmp_path, monkeypatch):
    def missing(variant):
        job = collect.Job(Setting(steps=7), {"dense": Variant(None), "v": variant}, [0], tmp_path)
        missing = job.missing()
        collect.collect(job)
        return missing

    assert missing(Variant({"dilation": 1})) == [(0, "dense"), (0, "v")]
    assert missing(Variant({"dilation": 1})) == []
    assert missing(Variant({"dilation": 2})) == [(0, "v")]


def test_a_method_that_fails_becomes_a_row_with_its_error(random_editor, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "cache_dit", None)
    options = ["--variants", "cache-dit", "--scenes", "1", "--steps", "7"]
    command.main([*options, "--work", str(tmp_path / "work"), "--out", str(tmp_path)])
    rows = json.loads((tmp_path / "quality.json").read_text())["rows"]
    (failed,) = (row for row in rows if row["parameters"]["method"] == "cache-dit")
    assert failed["name"] == "does not run"
    assert "ModuleNotFoundError" in failed["parameters"]["error"]


def test_every_variant_can_be_named_and_told_apart():
    assert set(rivals.RIVALS) == {v.rival for v in VARIANTS.values() if v.rival}
    assert set(ablations.ABLATIONS) == {v.ablation for v in VARIANTS.values() if v.ablation}
    for name, sweep in variants.SWEEPS.items():
        texts = [variant.text for variant in sweep.values()]
        assert len(set(texts)) == len(texts), name
    for names in (variants.MAIN, *variants.SWEEPS.values()):
        assert all(VARIANTS[name].text == variant.text for name, variant in names.items())


# -- texts


def difference(low, high):
    return {"value": (low + high) / 2, "low": low, "high": high, "unit": "dB", "samples": 48}


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ({"edit_db": difference(-0.3, -0.1)}, "Agrees"),
        ({"edit_db": difference(-0.3, 0.1)}, "No significant difference"),
        ({"edit_db": difference(0.1, 0.3)}, "DISAGREES"),
        ({"seam_excess": difference(0.1, 0.3)}, "Agrees"),  # a lower value is better
        ({"edit_db": difference(-1, -0.5), "same_db": difference(0.1, 0.2)}, "Mixed"),
    ],
)
def test_agreement_with_a_finding_follows_from_the_intervals(rows, expected):
    assert paper.agreement(rows, -1).startswith(expected)


def test_a_better_blend_is_said_to_be_better():
    better, similar = difference(0.1, 0.2), difference(-0.1, 0.2)
    assert "we propose to change the default" in paper._verdict_on_blend({"edit_db": better})
    assert paper._verdict_on_blend({"edit_db": similar}).startswith("No significant difference")


def test_the_texts_are_made_of_the_rows(random_editor, tmp_path):
    (tmp_path / "docs").mkdir()
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n\n{texts.BEGIN}\nold\n{texts.END}\n\nafter\n")
    common = ["--work", str(tmp_path / "work"), "--out", str(tmp_path), "--steps", "7"]
    command.main([*common, "--scenes", "2", "--variants", "default"])
    command.main([*common, "--scenes", "1", "--sweep", "condition"])
    with pytest.raises(SystemExit, match="--split hard"):
        command.write_texts(tmp_path, tmp_path)
    worst = ["--worst", str(tmp_path / "worst.png")]
    hard = ["--scenes", "2", "--split", "hard", "--variants", "default", "paper"]
    command.main([*common, *hard, *worst])
    command.write_texts(tmp_path, tmp_path)
    text = readme.read_text()
    assert text.startswith("before\n\n<!-- quality:begin -->\n| scenes | settings |")
    assert text.endswith("<!-- quality:end -->\n\nafter\n")
    work = results.read("quality", tmp_path).row("work saved", "default")["value"]
    (line,) = (line for line in text.splitlines() if line.startswith("| 2 easy | default | "))
    assert line.endswith(f" {100 * work:.0f}% |")
    document = (tmp_path / "docs/quality.md").read_text()
    assert "--sweep condition" in document
    assert "**Without the condition cache.**" in document
    assert "| cache int8 |" in document
    for picture in ("docs/quality.png", "worst.png"):
        assert (tmp_path / picture).stat().st_size > 10_000
    with pytest.raises(ValueError, match="quality:begin"):
        texts.inserted("no markers", "block")


def test_the_worst_scenes_are_those_with_the_lowest_recall():
    records = {
        ("3", "default"): {"recall": 0.5},
        ("4", "default"): {"recall": None},
        ("5", "default"): {"recall": 0.1},
        ("6", "paper"): {"recall": 0.0},
    }
    assert worst.worst(records) == [(5, 0.1), (3, 0.5)]


def test_an_edit_is_left_undone_if_less_than_half_of_it_is_made(tiny):
    truth = tiny[2]
    source, target = truth.source_round_trip, truth.scene.target
    assert truth._undone(source, target) == 1
    assert truth._undone(target, target) == 0
    assert truth._undone(source, source) is None  # dense did not make it either


def test_the_readme_says_what_the_rows_say():
    readme = (command.ROOT / "README.md").read_text(encoding="utf-8")
    runs = texts.runs(RESULTS)
    block = texts.readme(runs["quality"], runs["quality-hard"])
    assert texts.inserted(readme, block) == readme
