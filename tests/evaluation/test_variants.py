"""Tests of `spotedit eval --variants`: several settings beside one dense edit of each picture."""

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from pie import make_pie
from PIL import Image
from small_kontext import prompted_kontext

import spotedit
from spotedit import SpotEditConfig
from spotedit.cli import main
from spotedit.evaluation import fair, table
from spotedit.evaluation import run as evaluation
from spotedit.evaluation.data import Item
from spotedit.evaluation.edits import Edit
from spotedit.evaluation.networks import networks
from spotedit.evaluation.store import JsonLines
from spotedit.evaluation.variants import described, read_variants, recorded
from spotedit.options.file import SettingsError

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "bench" / "variants").glob("*.toml"))
PICTURES, STEPS = 2, 4
TWO = '[default]\n\n[fast-l2]\npreset = "fast"\njudge = "l2"\n'


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pie")
    make_pie(folder, PICTURES)
    return folder


@pytest.fixture(scope="module", autouse=True)
def small_models():
    """Let the command edit small copies with a random pipeline, and measure the PSNR alone."""
    measured = networks(torch.device("cpu"), names=["psnr"])
    pipe = prompted_kontext()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("spotedit.cli.eval.networks", lambda *_: measured)
        patch.setattr("spotedit.cli.eval.load", lambda *_: pipe)
        patch.setattr("spotedit.cli.eval.image_to_edit", lambda *given: given[-1].resize((64, 64)))
        yield


@pytest.fixture
def evaluate(data, tmp_path) -> Callable[..., int]:
    """Return a function that runs `spotedit eval` with the variants of a text."""

    def run(text: str | None, *further: str, out: str = "out") -> int:
        arguments = ["eval", str(data), "--out", str(tmp_path / out), "--model", "some/model"]
        arguments += ["--steps", str(STEPS), "--device", "cpu"]
        if text is not None:
            (tmp_path / "variants.toml").write_text(text)
            arguments += ["--variants", str(tmp_path / "variants.toml")]
        return main([*arguments, *further])

    return run


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory) -> Path:
    """Return the output folder of a run with two variants."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "v.toml").write_text(TWO)
    arguments = ["eval", data, "--out", folder / "out", "--model", "some/model", "--steps", STEPS]
    arguments += ["--device", "cpu", "--variants", folder / "v.toml", "--prompts"]
    assert main([str(argument) for argument in arguments]) == 0
    return folder / "out"


@pytest.fixture
def copy(finished, tmp_path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "out"))


def rows_of(out: Path) -> dict:
    return JsonLines(out, "rows").read()


# -- the file


def read(tmp_path: Path, text: str, **base) -> dict[str, SpotEditConfig]:
    (tmp_path / "v.toml").write_text(text)
    return read_variants(tmp_path / "v.toml", SpotEditConfig(**base))


def test_a_variant_is_a_change_of_the_commands_settings(tmp_path):
    variants = read(
        tmp_path, "[a-1]\n[b]\njudge-every = 2\n[b.temporal]\nmethod = 'TeaCache'", dilation=2
    )
    assert list(variants) == ["a-1", "b"]
    assert variants["a-1"] == SpotEditConfig(dilation=2)
    assert variants["b"] == SpotEditConfig(dilation=2, judge_every=2, temporal=spotedit.TeaCache())


def test_without_a_file_there_is_one_variant():
    config = SpotEditConfig(dilation=2)
    assert read_variants(None, config) == {"spot": config}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no settings; expected a table"),
        ("[dense]", r"\[dense\] is taken"),
        ("[Source]", r"\[Source\] is taken"),
        ("[a]\n[A]", r"\[A\] is taken"),
        ('["../a"]', "expected a name of letters, digits"),
        ('["a.b"]', "expected a name of letters, digits"),
        ('[""]', "expected a name of letters, digits"),
        (f"[{'a' * 41}]", "expected a name of letters, digits"),
        ("threshold = 1", r"\[threshold\]: expected a table"),
        ("[a]\ntreshold = 1", r"\[a\]: unknown name treshold; did you mean threshold\?"),
        ("[a]\nsteps = 4", r"\[a\]: unknown name steps"),
        ("[a]\nthreshold = -1", r"\[a\]: SpotEditConfig.threshold is -1; expected"),
        ("[a]\nreset_steps = [3]", r"\[a\]: .*exclude each other"),
    ],
)
def test_a_file_with_a_mistake(tmp_path, text, message):
    with pytest.raises(SettingsError, match=message):
        read(tmp_path, text, reset_every=4)


@pytest.mark.parametrize("path", FILES, ids=[path.stem for path in FILES])
def test_the_repositorys_files_differ_from_each_other(path):
    variants = list(read_variants(path, SpotEditConfig()).values())
    assert len(variants) > 2
    assert all(a.settings != b.settings or a != b for a in variants for b in variants if a is not b)


def test_a_configuration_is_described_by_what_differs():
    assert described(recorded(SpotEditConfig())) == "the defaults"
    config = SpotEditConfig("paper", reset_steps=[], temporal=spotedit.TaylorSeer(interval=3))
    method = "TaylorSeer(interval=3, order=1, warm_up=2)"
    expected = f'preset = "paper", reset_steps = [], temporal = {method}'
    assert described(recorded(config)) == expected
    tea = SpotEditConfig(temporal=spotedit.TeaCache(0.2))
    assert described(recorded(tea)) == "temporal = TeaCache(threshold=0.2, coefficients=None)"


# -- the run


def test_every_picture_has_one_dense_edit_and_one_of_each_variant(finished):
    rows = rows_of(finished)
    keys = {key for key, _ in rows}
    modes = ("dense", "default", "fast-l2")
    assert rows.keys() == {(key, mode) for key in keys for mode in modes}
    assert len(keys) == PICTURES
    for (key, mode), row in rows.items():
        assert (finished / mode / f"{key}.png").is_file()
        assert row["settings"] == rows[key, "dense"]["settings"]
        assert "config" not in row["settings"]
    configs = {mode: row["config"] for (_, mode), row in rows.items()}
    assert configs["dense"] is None
    assert configs["default"]["preset"] == "default"
    assert (configs["fast-l2"]["preset"], configs["fast-l2"]["judge"]) == ("fast", "l2")


def test_the_order_alternates_and_every_mode_is_warmed_up_once(tmp_path, monkeypatch):
    calls = []

    def edit(pipe, options, seed, config):
        calls.append("dense" if config is None else config.preset)
        return Edit(Image.new("RGB", (8, 8)), 1.0, 1, None)

    def warm_up(pipe, options, seed, config):
        calls.append("warm")

    monkeypatch.setattr(evaluation, "edit", edit)
    monkeypatch.setattr(evaluation, "warm_up", warm_up)
    monkeypatch.setattr(evaluation, "call_options", lambda *args: {})
    items = [Item(key, "", "", partial(Image.new, "RGB", (8, 8))) for key in ("a", "b")]
    variants = {"x": SpotEditConfig(), "y": SpotEditConfig("fast")}
    evaluation.edit_all(None, items, tmp_path, {"seed": 0}, {}, variants, lambda image: image)
    first = ["warm", "dense", "warm", "default", "warm", "fast"]
    assert calls == [*first, "fast", "default", "dense"]


def test_the_table_and_the_prompts_have_every_variant(finished):
    text = (finished / "table.md").read_text()
    assert text.count("| SpotEdit (spotedit), default |") == 1
    assert text.count("| SpotEdit (spotedit), fast-l2 |") == 1
    assert "- default: the defaults\n" in text
    assert '- fast-l2: preset = "fast", judge = "l2"\n' in text
    assert "| metric | dense | default | fast-l2 |" in text
    prompts = [json.loads(line) for line in (finished / "prompts.jsonl").read_text().splitlines()]
    assert [prompt["mode"] for prompt in prompts] == ["dense", "default", "fast-l2"] * PICTURES


def test_differences_are_paired_by_picture(finished):
    metrics = JsonLines(finished, "metrics").read()
    psnr = {picture: row["values"]["psnr"] for picture, row in metrics.items()}
    differences = [v - psnr[key, "dense"] for (key, mode), v in psnr.items() if mode == "default"]
    mean = sum(differences) / len(differences)
    text = (finished / "table.md").read_text()
    (line,) = (line for line in text.splitlines() if line.startswith("| default |"))
    assert line.split(" | ")[3] == f"{mean:+.3g}"


def test_an_interval_needs_more_than_a_few_pictures():
    values = [1.0, 3.0] * 5
    assert table._interval(values[:9]) == f"{17 / 9:+.3g}"
    half = 1.96 * (10 / 9) ** 0.5 / 10**0.5
    assert table._interval(values) == f"+2 [{2 - half:+.3g}, {2 + half:+.3g}]"
    assert table._interval([]) == "-"


def test_only_a_new_variant_is_edited(evaluate, copy):
    before = rows_of(copy)
    assert evaluate(TWO + "[late]\ndilation = 0\n") == 0
    after = rows_of(copy)
    assert {mode for _, mode in after.keys() - before.keys()} == {"late"}
    assert all(after[picture] == row for picture, row in before.items())


def test_a_changed_variant_is_refused_under_its_old_name(evaluate, copy, capsys):
    before = rows_of(copy)
    assert evaluate(TWO.replace("l2", "cosine", 2).replace("fast-cosine", "fast-l2")) == 2
    error = capsys.readouterr().err
    assert "fast-l2 row" in error
    assert "judge = 'l2'; expected 'cosine'" in error
    assert "another name" in error
    assert rows_of(copy) == before


def test_the_table_shows_the_variants_of_the_command_or_all_that_exist(evaluate, copy, capsys):
    assert evaluate("[default]", "--score-only") == 0
    assert "fast-l2" not in capsys.readouterr().out
    assert evaluate(None, "--score-only") == 0
    assert "SpotEdit (spotedit), fast-l2" in capsys.readouterr().out


def test_settings_that_the_pipeline_refuses_are_found_before_the_work(
    evaluate, tmp_path, capsys, monkeypatch
):
    def refuse(pipe, config):
        if config.preset == "fast":
            raise ValueError("no coefficients")
        return enable(pipe, config)

    enable = spotedit.enable
    monkeypatch.setattr(spotedit, "enable", refuse)
    assert evaluate(TWO) == 2
    assert "the settings fast-l2: no coefficients" in capsys.readouterr().err
    assert not rows_of(tmp_path / "out")


def test_a_variant_without_a_picture_is_left_out_of_the_table(evaluate, copy, capsys):
    rows = JsonLines(copy, "rows")
    for (_, mode), row in rows.read().items():
        if mode == "fast-l2":
            rows.append(row | {"problem": "refused"})
    assert evaluate(TWO, "--score-only") == 0
    out = capsys.readouterr().out
    assert "SpotEdit (spotedit), default" in out
    assert "SpotEdit (spotedit), fast-l2" not in out
    assert "fast-l2: no picture is finished" in out


# -- rows of before there were variants


@pytest.fixture
def older(finished, tmp_path) -> Path:
    """Return a folder with one configuration, which is among the settings of all rows."""
    out = tmp_path / "out"
    shutil.copytree(finished / "dense", out / "dense")
    shutil.copytree(finished / "default", out / "spot")
    configs = {"dense": "dense", "default": "spot"}
    for (_, mode), row in rows_of(finished).items():
        if mode in configs:
            settings = row["settings"] | {"config": recorded(SpotEditConfig())}
            kept = {k: v for k, v in row.items() if k not in ("config", "flops_saved")}
            JsonLines(out, "rows").append(kept | {"mode": configs[mode], "settings": settings})
    return out


def test_a_folder_of_before_is_read_and_continued(evaluate, older, finished, capsys):
    new = rows_of(finished)
    for (key, mode), row in rows_of(older).items():
        same = new[key, "dense" if mode == "dense" else "default"]
        assert (row["config"], row["settings"]) == (same["config"], same["settings"])
    before = (older / "rows-0.jsonl").read_bytes()
    assert evaluate(None) == 0
    assert (older / "rows-0.jsonl").read_bytes() == before  # nothing is edited again
    (line,) = (x for x in capsys.readouterr().out.splitlines() if "| SpotEdit (spotedit) |" in x)
    assert line.endswith("| - |")  # the work saved is not known
    assert evaluate(None, "--dilation", "0") == 2
    assert "dilation = None; expected 0" in capsys.readouterr().err


def test_rows_of_one_mode_must_have_one_configuration():
    row = {"key": "a", "mode": "x", "settings": {}, "config": {"dilation": 0}}
    row |= {"size": [1, 1], "forwards": 1}
    other = row | {"key": "b", "config": {"dilation": 1}}
    with pytest.raises(fair.Unfair, match="dilation = 1; expected 0"):
        fair.check_fair([row, other])
    fair.check_fair([row, other | {"mode": "y"}])
