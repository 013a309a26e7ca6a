"""The benches' arithmetic on known arrays, and their commands on a random pipeline."""

import json

import numpy as np
import pytest
import torch
from conftest import call_arguments, random_kontext

from bench import convergence, editor, edits, environment, metrics, rows, speed, timing
from spotedit import quality
from spotedit.session import Session

GRID = (4, 5)
SIZE = {"height": 48, "width": 64, "max_area": 48 * 64}


def test_psnr_of_a_known_difference():
    a = np.full((4, 4, 3), 100, dtype=np.uint8)
    b, where = a.copy(), np.zeros((4, 4), dtype=bool)
    b[0], where[:2] = 110, True
    assert quality.psnr(a, b, where) == pytest.approx(10 * np.log10(255**2 / 50))
    assert quality.psnr(a, b, ~where) == float("inf")
    assert np.isnan(quality.psnr(a, b, np.zeros_like(where)))


@pytest.mark.parametrize(
    ("scores", "expected"),
    [([0, 1, 2, 3], 1.0), ([3, 2, 1, 0], 0.0), ([1, 1, 1, 1], 0.5), ([0, 2, 2, 3], 0.875)],
)
def test_auc_counts_the_pairs_in_order(scores, expected):
    truth = np.array([False, False, True, True])
    assert metrics.auc(np.array(scores, dtype=float), truth) == expected
    assert np.isnan(metrics.auc(np.array(scores, dtype=float), np.zeros(4, dtype=bool)))


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


def test_background_keeps_whole_tokens_between():
    region = np.zeros((8, 9), dtype=bool)
    region[4, 4] = True
    far = quality.background(region, (16, 18))
    expected = np.ones((8, 9), dtype=bool)
    expected[2:7, 2:7] = False
    assert np.array_equal(far, expected.repeat(2, axis=0).repeat(2, axis=1))


def test_changed_share_is_per_token():
    mask = np.zeros((8, 10), dtype=bool)
    mask[0, 0] = mask[2:4, 2:4] = True
    share = metrics.changed_share(mask, GRID)
    assert share[0, 0] == 0.25
    assert share[1, 1] == 1
    assert share.sum() == 1.25


def test_convergence_step_is_the_first_that_stays():
    distances = np.array([[9, 9, 0, 9], [0, 9, 0, 0], [9, 0, 0, 0], [0, 0, 0, 9]], dtype=float)
    assert metrics.convergence_step(distances, 1).tolist() == [3, 2, 0, 4]


def test_rows_are_written_whole_with_targets_and_without_nan(tmp_path):
    found = [
        rows.Row.median("time", [1.0, 3.0, 2.0], "ms", parameters={"px": 128}),
        rows.Row("ratio", 1.9, "x", at_least=2.0, parameters={"r": "25%"}),
        rows.Row("nothing", float("nan"), "dB"),
    ]
    text = rows.save("sample", found, environment.describe(), ["A note."], tmp_path)
    assert "| time | 128 |  | 2 [1.4, 2.6] | ms | 3 |  |" in text
    assert "| ratio |  | 25% | 1.9 | x | 1 | >= 2: MISSED |" in text
    assert (tmp_path / "sample.md").read_text() == text
    data = json.loads((tmp_path / "sample.json").read_text())
    assert [row["value"] for row in data["rows"]] == [2.0, 1.9, None]
    assert data["rows"][1]["met"] is False
    assert {"commit", "torch", "cpu", "date"} <= set(data["environment"])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["sample.json", "sample.md"]


@pytest.mark.parametrize("ratio", [0.05, 0.25, 1.0])
def test_the_rectangle_has_about_the_ratio(ratio):
    assert speed.rectangle((32, 32), ratio).mean() == pytest.approx(ratio, rel=0.15)


def test_estimates_of_a_trace_are_the_pipelines_own_clean_images():
    pipe = random_kontext()
    seen = []
    hook = pipe.transformer.register_forward_hook(
        lambda m, a, kw, out: seen.append((kw["hidden_states"], out[0])), with_kwargs=True
    )
    with edits.traced(pipe) as (trace, extra):
        pipe(**call_arguments(**SIZE), **extra)
    hook.remove()
    for (hidden, velocity), sigma, estimate in zip(
        seen, trace.sigmas, trace.estimates(), strict=False
    ):
        expected = (hidden - sigma * velocity)[:, :48]
        assert torch.allclose(estimate, expected, atol=1e-4)
    assert torch.equal(trace.source, seen[0][0][:, 48:])
    assert len(trace.estimates()) == 8


def test_timed_parts_leaves_nothing_behind():
    pipe = random_kontext()
    before = type(pipe.transformer), set(vars(pipe.vae)), Session.scheduler_step
    with timing.timed_parts(pipe) as watch:
        pipe(**call_arguments(**SIZE, output_type="pil"))
    assert (type(pipe.transformer), set(vars(pipe.vae)), Session.scheduler_step) == before
    assert len(watch.seconds(timing.TRANSFORMER)) == 8
    assert len(watch.seconds(timing.DECODE)) == 1
    assert watch.seconds(timing.SELECT) == []


@pytest.fixture
def random_editor(monkeypatch):
    """The benches edit their scenes with a random pipeline in place of the trained editor."""
    pipe = random_kontext()

    def arguments(scene, seed, steps):
        height, width = scene.mask.shape
        size = {"height": height, "width": width, "max_area": height * width}
        given = {"image": scene.source_image, "output_type": "pil", "num_inference_steps": steps}
        return call_arguments(seed, **size, **given) | given

    monkeypatch.setattr(edits, "load", lambda *args: pipe)
    monkeypatch.setattr(edits, "arguments", arguments)
    return pipe


def names(folder, bench):
    return [row["name"] for row in json.loads((folder / f"{bench}.json").read_text())["rows"]]


def test_speed_command(random_editor, tmp_path):
    speed.main(["--sizes", "64", "--steps", "7", "8", "--out", str(tmp_path)])
    found = names(tmp_path, "speed")
    assert found.count("whole edit, dense / spot") == 4  # two modes, two numbers of steps
    assert found.count("share of S/M") == 2


def test_editor_command_goes_on_where_it_stopped(random_editor, tmp_path, monkeypatch):
    command = ["--scenes", "1", "--steps", "7", "--variants", "l2"]
    command += ["--work", str(tmp_path), "--out", str(tmp_path)]
    editor.main(command)
    (store,) = tmp_path.glob("*.jsonl")
    with store.open("a") as file:
        file.write('\n{"method": "de')  # as a crash leaves it
    monkeypatch.setattr(editor, "edit", None)
    editor.main(command)
    assert "edited region, difference to dense" in names(tmp_path, "editor")


def test_convergence_command(random_editor, tmp_path):
    figure = tmp_path / "figure.png"
    command = ["--scenes", "1", "--shown", "0", "--steps", "7"]
    convergence.main([*command, "--figure", str(figure), "--out", str(tmp_path)])
    assert figure.stat().st_size > 10_000
    assert "AUC of the score, first judgement" in names(tmp_path, "convergence")
