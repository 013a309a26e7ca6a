"""Tests of the command line: exit codes, checks before the work, files and comparison."""

import importlib
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import FluxKontextPipeline
from pie import make_pie
from PIL import Image
from small_kontext import PromptedKontext, prompted_kontext

import spotedit
from spotedit.cli import commands, demo, edit, main, options, preview
from spotedit.editor import editor, keep, loading

WIDTH, HEIGHT = 64, 48


@pytest.fixture
def model(monkeypatch) -> list[object]:
    """Let `edit` and `preview` load random pipelines; return the list of those that they load."""
    loaded: list[object] = []

    def load(*args):
        pipe = prompted_kontext()
        loaded.append(pipe)
        return pipe

    for module in (editor, preview):
        monkeypatch.setattr(module, "load", load)
    return loaded


@pytest.fixture
def tiny_editor():
    return importlib.import_module("spotedit.tiny")


@pytest.fixture
def picture(tmp_path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "in.png")
    return tmp_path / "in.png"


@pytest.fixture
def run(picture, tmp_path) -> Callable[..., int]:
    """Return a function that runs `spotedit edit in.png "add a hat" -o out.png --model x`.

    It takes further arguments of the command line.
    """

    def command(*further: object, output: str = "out.png", model: str = "some/model") -> int:
        arguments = ["edit", picture, "add a hat", "-o", tmp_path / output, "--model", model]
        return main([str(argument) for argument in (*arguments, *further)])

    return command


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {"in.png"}


# -- the program


def test_help_does_not_wait_for_pytorch():
    program = "import sys, spotedit.cli as c; print('torch' in sys.modules); c.main(['--help'])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0
    assert done.stdout.startswith("False\nusage: spotedit")


def test_help_of_a_command_does_not_wait_for_pytorch_either():
    program = "import sys, spotedit.cli.commands as o; print('torch' in sys.modules); o.parse{}"
    arguments = ("edit", ["--help"])
    command = [sys.executable, "-c", program.format(arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0
    assert done.stdout.startswith("False\nusage: spotedit edit")


@pytest.mark.parametrize("command", ["demo", "edit", "preview", "verify", "eval"])
def test_every_field_of_the_configuration_is_an_option(command, capsys):
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    out = capsys.readouterr().out
    for field in fields(spotedit.SpotEditConfig):
        option = field.name.replace("_", "-")
        assert re.search(rf"--{option}[ ,]", out), option


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("", {}),
        ("--preset fast --threshold auto", {"preset": "fast", "threshold": "auto"}),
        ("--judge l2 --threshold 0.1", {"judge": "l2", "threshold": 0.1}),
        ("--reset-steps 3 9 --dilation 2", {"reset_steps": (3, 9), "dilation": 2}),
        ("--no-match-size --cache-text", {"match_size": False, "cache_text": True}),
        ("--reference 1 --cache-dtype int8", {"reference": 1, "cache_dtype": "int8"}),
        ("--temporal TaylorSeer", {"temporal": spotedit.TaylorSeer()}),
        ("--temporal TaylorSeer(interval=3)", {"temporal": spotedit.TaylorSeer(interval=3)}),
        ("--temporal TeaCache(coefficients=[1,2])", {"temporal": spotedit.TeaCache(None, [1, 2])}),
    ],
)
def test_options_become_the_configuration(given, expected):
    parsed = commands.parse("edit", ["in.png", "add a hat", "-o", "out.png", *given.split()])
    assert options.spotedit_config(parsed.config) == spotedit.SpotEditConfig(**expected)


@pytest.mark.parametrize(
    "method", ["Seer", "TaylorSeer(3)", "TaylorSeer(pace=3)", "TeaCache(", "TaylorSeer(interval=0)"]
)
def test_a_temporal_method_that_does_not_exist(method, capsys):
    with pytest.raises(SystemExit) as stop:
        commands.parse("demo", ["--temporal", method])
    assert stop.value.code == 2
    assert "expected" in capsys.readouterr().err


def test_options_that_exclude_each_other(run, model, capsys, tmp_path):
    assert run("--reset-every", 4, "--reset-steps", 3) == 2
    assert "exclude each other" in capsys.readouterr().err
    assert names(tmp_path) == set()


@pytest.mark.parametrize("arguments", [[], ["nonsense"], ["demo", "--scenes", "0"], ["edit"]])
def test_usage_errors(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert "usage:" in capsys.readouterr().err


def test_version(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out == f"spotedit {spotedit.__version__}\n"


def test_env_names_versions_and_nothing_personal(capsys):
    import platform

    assert main(["env"]) == 0
    out = capsys.readouterr().out
    for name in ("python", "torch", "triton", "diffusers", "transformers", "spotedit"):
        assert f"\n{name} " in f"\n{out}"
    assert platform.node() not in out
    assert "/" not in out


# -- edit: bad input is found before a model is loaded


def test_a_model_must_be_named(picture, tmp_path, capsys):
    status = main(["edit", str(picture), "add a hat", "-o", str(tmp_path / "out.png")])
    assert status == 2
    error = capsys.readouterr().err
    assert "tiny" in error
    assert "FLUX.1-Kontext-dev" in error


@pytest.mark.parametrize(
    ("arguments", "output", "message"),
    [
        ([], "in.png", "already exists"),
        ([], "missing/out.png", "create it first"),
        ([], "out.docx", "expected one of .png"),
        (["--report", "r.txt"], "out.png", "expected one of .json"),
        (["--mask", "missing.png"], "out.png", "no such file"),
        (["--threshold", "-1"], "out.png", "threshold"),
        (["--device", "nonsense"], "out.png", "--device nonsense"),
        (["--device", "cpu", "--offload", "model"], "out.png", "needs a GPU"),
    ],
)
def test_bad_input(run, model, capsys, tmp_path, arguments, output, message):
    assert run(*arguments, output=output) == 2
    assert message in capsys.readouterr().err
    assert model == []
    assert names(tmp_path) == set()


def test_compare_checks_its_own_files_too(run, model, capsys, tmp_path):
    (tmp_path / "out-dense.png").touch()
    assert run("--compare") == 2
    assert "out-dense.png: already exists" in capsys.readouterr().err
    assert model == []


def test_mask_of_another_aspect(run, model, capsys, tmp_path):
    Image.new("L", (WIDTH + 4, HEIGHT)).save(tmp_path / "mask.png")
    assert run("--mask", tmp_path / "mask.png") == 2
    error = capsys.readouterr().err
    assert f"expected the aspect ratio of {tmp_path / 'in.png'}, {WIDTH} x" in error
    assert model == []


def test_a_picture_that_is_no_mask(run, model, capsys, tmp_path):
    pixels = np.linspace(-1, 1, WIDTH * HEIGHT, dtype=np.float32).reshape(HEIGHT, WIDTH)
    Image.fromarray(pixels).save(tmp_path / "mask.tif")
    assert run("--mask", tmp_path / "mask.tif") == 2
    assert "mask.tif: mask has values from -1 to 1; expected 0" in capsys.readouterr().err
    assert model == []


def test_corrupt_picture(run, model, capsys, picture):
    picture.write_bytes(picture.read_bytes()[:200])
    assert run() == 2
    assert "in.png" in capsys.readouterr().err
    assert model == []


# -- edit: models


@pytest.mark.parametrize("name", ["nowhere", "/no/such/folder", "a/b/c"])
def test_a_model_that_is_neither_folder_nor_id(run, capsys, name):
    assert run(model=name) == 2
    assert "no such folder" in capsys.readouterr().err


def test_a_folder_without_a_pipeline(run, capsys, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    assert run(model=str(folder)) == 1
    error = capsys.readouterr().err
    assert "cannot be loaded" in error
    assert "FLUX.1-Kontext-dev" in error


def test_an_unsupported_pipeline_is_refused_before_its_weights_are_read(run, capsys, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    index = {"_class_name": "StableDiffusionPipeline", "_diffusers_version": "0.42.0"}
    (folder / "model_index.json").write_text(json.dumps(index))
    assert run(model=str(folder)) == 2
    error = capsys.readouterr().err
    assert "StableDiffusionPipeline" in error
    assert "FluxKontextPipeline" in error


def test_a_saved_pipeline_is_loaded_from_its_folder(tiny_editor, tmp_path):
    saved = FluxKontextPipeline(**tiny_editor.load().components)
    saved.save_pretrained(tmp_path / "model")
    loaded = loading.load(str(tmp_path / "model"), None, torch.device("cpu"), "none")
    assert type(loaded).__name__ == "FluxKontextPipeline"
    for a, b in zip(saved.vae.parameters(), loaded.vae.parameters(), strict=True):
        assert torch.equal(a, b)


# -- edit: the work


def test_edit_writes_the_picture_and_the_report(run, model, capsys, tmp_path):
    assert run("--steps", 8, "--report", tmp_path / "r.json") == 0
    assert names(tmp_path) == {"out.png", "r.json"}
    assert Image.open(tmp_path / "out.png").size == (WIDTH, HEIGHT)
    report = json.loads((tmp_path / "r.json").read_text())
    assert len(report["steps"]) == 8
    assert report["spot_seconds"] > 0
    assert report["dense_seconds"] is None
    assert "8 steps" in capsys.readouterr().out


def test_edit_takes_the_configuration(run, model, tmp_path):
    config = ("--initial-steps", 1, "--reset-every", 2, "--temporal", "TaylorSeer(warm_up=8)")
    assert run("--steps", 8, *config, "--report", tmp_path / "r.json") == 0
    steps = json.loads((tmp_path / "r.json").read_text())["steps"]
    assert [step["index"] for step in steps if step["kind"] == "full"][:2] == [0, 2]


def test_edit_is_reproducible_and_follows_the_seed(run, model, tmp_path):
    for name, seed in (("a.png", 1), ("b.png", 1), ("c.png", 2)):
        assert run("--steps", 4, "--seed", seed, output=name) == 0
    a, b, c = (np.asarray(Image.open(tmp_path / f"{name}.png")) for name in "abc")
    assert np.array_equal(a, b)
    assert not np.array_equal(a, c)


def test_edit_keeps_the_original_photograph(run, model, picture, capsys, tmp_path):
    photo = np.asarray(Image.open(picture).resize((4 * WIDTH, 4 * HEIGHT)))
    Image.fromarray(photo).save(picture, dpi=(300, 300))
    left_half("palette", WIDTH, HEIGHT).save(tmp_path / "mask.png")
    # the random pipeline edits at the size of its source
    masked = ("--mask", tmp_path / "mask.png", "--mask-mode", "replace", "--steps", 4)
    assert run(*masked) == 0
    edited = np.asarray(Image.open(tmp_path / "out.png"))
    token = 8
    is_kept = np.s_[:, 2 * WIDTH + token :]
    assert np.array_equal(edited[is_kept], photo[is_kept])
    assert not np.array_equal(edited, photo)
    assert Image.open(tmp_path / "out.png").info["dpi"] == pytest.approx((300, 300), abs=0.1)
    out = capsys.readouterr().out
    assert f"{4 * WIDTH} x {4 * HEIGHT} pixels" in out
    assert "47% of its pixels are those of" in out


def test_an_edit_that_cannot_be_put_into_the_original_is_not_lost(
    run, model, monkeypatch, capsys, tmp_path
):
    def fail(*args):
        raise ValueError("the codec broke")

    monkeypatch.setattr(keep, "write_edit", fail)
    assert run("--steps", 4) == 1
    assert "as the model made it" in capsys.readouterr().err
    assert Image.open(tmp_path / "out.png").size == (WIDTH, HEIGHT)


def left_half(kind: str, width: int, height: int) -> Image.Image:
    """Return a mask of one kind whose left half may change."""
    left = np.arange(width) < width // 2 * np.ones((height, 1))
    if kind == "16 bit":
        return Image.fromarray(np.where(left, 65535, 300).astype(np.uint16))
    if kind == "paint":
        return Image.fromarray(left[..., None] * np.array([255, 0, 0, 255], np.uint8))
    return Image.fromarray(left).convert("P")


@pytest.mark.parametrize("scale", [0.5, 1, 3])
@pytest.mark.parametrize("kind", ["16 bit", "paint", "palette"])
def test_mask_decides_where_the_picture_may_change(run, model, tmp_path, kind, scale):
    left_half(kind, int(scale * WIDTH), int(scale * HEIGHT)).save(tmp_path / "mask.png")
    mask = ("--mask", tmp_path / "mask.png", "--mask-mode", "replace")
    assert run("--steps", 8, *mask, "--report", tmp_path / "r.json") == 0
    region = np.array(json.loads((tmp_path / "r.json").read_text())["region"], dtype=bool)
    columns = region.shape[1]
    assert region[:, : columns // 2].all()
    assert not region[:, columns // 2 :].any()


def test_compare_runs_both_ways_at_one_size(run, model, capsys, tmp_path):
    assert run("--steps", 4, "--compare") == 0
    assert names(tmp_path) == {"out.png", "out-dense.png", "out-compare.png"}
    sizes = {Image.open(tmp_path / name).size for name in ("out.png", "out-dense.png")}
    assert sizes == {(WIDTH, HEIGHT)}
    assert "without skipping" in capsys.readouterr().out


def test_the_dense_picture_is_the_stock_pipelines(run, model, picture, tmp_path):
    assert run("--steps", 4, "--seed", 3, "--compare") == 0
    stock = model[0](
        image=Image.open(picture),
        prompt="add a hat",
        num_inference_steps=4,
        height=HEIGHT,
        width=WIDTH,
        max_area=HEIGHT * WIDTH,
        generator=torch.Generator().manual_seed(3),
    ).images[0]
    assert np.array_equal(stock, Image.open(tmp_path / "out-dense.png"))


def test_force_overwrites(run, model, tmp_path):
    (tmp_path / "out.png").write_text("mine")
    assert run("--steps", 4, "--force") == 0
    assert Image.open(tmp_path / "out.png").size == (WIDTH, HEIGHT)


@pytest.mark.parametrize(
    ("error", "status"),
    [(KeyboardInterrupt, 130), (torch.OutOfMemoryError, 1), (ValueError, 2)],
)
def test_an_edit_that_is_cut_short_writes_nothing(run, model, monkeypatch, tmp_path, error, status):
    def stop(*args, **kwargs):
        raise error("stop")

    monkeypatch.setattr(PromptedKontext, "encode_prompt", stop)
    assert run() == status
    assert names(tmp_path) == set()


def without(folder: Path, call: Callable) -> Callable:
    """Return a function that does what `call` does, and then deletes the folder."""

    def called(*args, **kwargs):
        result = call(*args, **kwargs)
        shutil.rmtree(folder, ignore_errors=True)
        return result

    return called


def test_a_folder_that_vanishes_during_the_edit(run, model, monkeypatch, tmp_path, capsys):
    out, current = tmp_path / "out", tmp_path / "current"
    out.mkdir()
    current.mkdir()
    monkeypatch.chdir(current)
    monkeypatch.setattr(edit, "edit_photo", without(out, edit.edit_photo))
    assert run("--steps", 4, "--compare", "--report", out / "r.json", output="out/o.png") == 1
    lines = capsys.readouterr().err.splitlines()[-4:]
    saved = []
    for line, name in zip(lines, ("o", "o-dense", "o-compare", "r"), strict=True):
        (path,) = current.glob(f"{name}-????????.*")
        assert line.endswith(f"It was written to {path} instead")
        saved.append(path)
    for path in saved[:2]:
        assert Image.open(path).size == (WIDTH, HEIGHT)
    assert len(json.loads(saved[3].read_text())["steps"]) == 4


def test_a_report_that_cannot_be_written(run, model, monkeypatch, tmp_path, capsys):
    reports = tmp_path / "reports"
    reports.mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(edit, "edit_photo", without(reports, edit.edit_photo))
    assert run("--steps", 4, "--report", reports / "r.json") == 1
    error = capsys.readouterr().err
    assert f"spotedit edit: {reports / 'r.json'}: cannot be written (No such file" in error
    assert Image.open(tmp_path / "out.png").size == (WIDTH, HEIGHT)


def test_a_figure_that_cannot_be_drawn(run, model, monkeypatch, tmp_path, capsys):
    def fail(*args, **kwargs):
        raise ValueError("the figure is too large")

    monkeypatch.setattr(edit, "save_figure", fail)
    assert run("--steps", 4, "--compare") == 1
    assert "out-compare.png: the figure is too large. It could not" in capsys.readouterr().err
    assert names(tmp_path) == {"out.png", "out-dense.png"}


# -- preview


def test_a_preview_whose_folder_vanishes(model, picture, monkeypatch, tmp_path, capsys):
    out, current = tmp_path / "out", tmp_path / "current"
    out.mkdir()
    current.mkdir()
    monkeypatch.chdir(current)
    monkeypatch.setattr(preview, "call_options", without(out, preview.call_options))
    command = ["preview", picture, "add a hat", "-o", out / "p.png", "--model", "some/model"]
    assert main([str(argument) for argument in (*command, "--steps", 8)]) == 1
    assert capsys.readouterr().err.count("It was written to") == 2
    assert len(names(current)) == 2


def test_preview_writes_a_mask_that_edit_takes(model, picture, run, capsys, tmp_path):
    command = ["preview", picture, "add a hat", "-o", tmp_path / "p.png", "--model", "some/model"]
    command = [str(argument) for argument in (*command, "--steps", 8, "--threshold", 0.5)]
    assert main(command) == 0
    assert names(tmp_path) == {"p.png", "p-mask.png"}
    assert "1 steps" in capsys.readouterr().out
    mask = Image.open(tmp_path / "p-mask.png")
    assert mask.size == (WIDTH, HEIGHT)
    assert set(np.unique(mask)) <= {0, 255}
    assert run("--mask", tmp_path / "p-mask.png", "--steps", 8, "--threshold", 0.5) == 0
    assert main(command) == 2
    assert "already exists" in capsys.readouterr().err


def test_preview_of_an_edit_that_skips_nothing(model, picture, capsys, tmp_path):
    command = ["preview", picture, "add a hat", "-o", tmp_path / "p.png", "--model", "some/model"]
    assert main([str(argument) for argument in (*command, "--steps", 1)]) == 2
    assert "too few steps" in capsys.readouterr().err
    assert names(tmp_path) == set()


# -- the tiny editor


def test_edit_with_the_tiny_editor(tiny_editor, run, picture, tmp_path, capsys):
    Image.open(picture).resize((300, 200)).save(picture)
    left_half("palette", 150, 100).save(tmp_path / "mask.png")
    masked = ("--mask", tmp_path / "mask.png", "--mask-mode", "replace")
    assert run("--steps", 4, *masked, "--report", tmp_path / "r.json", model="tiny") == 0
    region = np.array(json.loads((tmp_path / "r.json").read_text())["region"], dtype=bool)
    assert region.mean() == pytest.approx(0.5, abs=1 / region.shape[1])
    original, kept = (np.asarray(Image.open(path)) for path in (picture, tmp_path / "out.png"))
    assert np.array_equal(kept[:, 180:], original[:, 180:])
    assert not np.array_equal(kept[:, :150], original[:, :150])
    assert "% of its pixels are those of" in capsys.readouterr().out
    models_own = ("--keep", "model", "--force")
    assert run("--steps", 4, *models_own, model="tiny") == 0
    width, height = Image.open(tmp_path / "out.png").size
    assert width * height == pytest.approx(128**2, rel=0.1)
    assert width / height == pytest.approx(1.5, rel=0.1)
    guided = ("--true-cfg", 1.5, "--negative-prompt", "red", "--threshold", "auto", "--force")
    first = (tmp_path / "out.png").read_bytes()
    assert run("--steps", 4, *guided, model="tiny") == 0
    assert (tmp_path / "out.png").read_bytes() != first
    assert "the picture's own threshold" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["edit", "preview"])
def test_an_option_that_the_pipeline_does_not_take(
    tiny_editor, picture, command, tmp_path, capsys, monkeypatch
):
    call = tiny_editor.TinyKontextPipeline.__call__
    parameters = call.__signature__.parameters.items()
    fewer = [parameter for name, parameter in parameters if name != "true_cfg_scale"]
    monkeypatch.setattr(call, "__signature__", call.__signature__.replace(parameters=fewer))
    arguments = [command, picture, "add a hat", "-o", tmp_path / "o.png", "--model", "tiny"]
    assert main([str(argument) for argument in (*arguments, "--true-cfg", 4)]) == 2
    assert "true_cfg_scale" in capsys.readouterr().err
    assert names(tmp_path) == set()


@pytest.fixture
def two_threads():
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)


def watch_threads(monkeypatch, module, name, then):
    """Replace a function of a module by `then`; return a list of the thread counts at its calls."""
    seen = []

    def watched(*args, **kwargs):
        seen.append(torch.get_num_threads())
        return then(*args)

    monkeypatch.setattr(module, name, watched)
    return seen


def interrupt(*args):
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    "command_line",
    ["demo", "edit IN paint -o O.png", "preview IN paint -o O.png", "verify tiny IN paint",
     "calibrate tiny", "eval PIE --out O"],
    ids=lambda command_line: command_line.split()[0],
)  # fmt: skip
def test_the_tiny_editor_has_one_thread(two_threads, picture, tmp_path, monkeypatch, command_line):
    make_pie(tmp_path / "PIE", 1)
    monkeypatch.chdir(tmp_path)
    command, *rest = command_line.replace("IN", picture.name).split()
    module = editor if command == "edit" else importlib.import_module(f"spotedit.cli.{command}")
    model = ["--model", "tiny"] if command in ("edit", "preview", "eval") else []
    seen = watch_threads(monkeypatch, module, "load", interrupt)
    assert main([command, *rest, *model]) == 130
    assert seen == [1]
    assert torch.get_num_threads() == 2


def test_other_models_keep_their_threads(two_threads, run, model, monkeypatch):
    seen = watch_threads(monkeypatch, PromptedKontext, "encode_prompt", interrupt)
    assert run() == 130
    assert seen == [2]


def test_demo(tiny_editor, two_threads, tmp_path, capsys, monkeypatch):
    seen = watch_threads(monkeypatch, demo, "timed", demo.timed)
    assert main(["demo", "--scenes", "2", "--steps", "2", "--out", str(tmp_path / "d")]) == 0
    assert set(seen) == {1}
    assert torch.get_num_threads() == 2
    assert names(tmp_path / "d") == {"demo.png", "steps.png"}
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert len(rows) == 2 + 2 + 1  # header, scenes, their mean
    assert all(row.count("|") == rows[0].count("|") for row in rows)
    assert main(["demo", "--out", str(tmp_path / "d")]) == 2
    assert "already exists" in capsys.readouterr().err


@pytest.mark.full
def test_the_demo_as_users_run_it(tiny_editor, tmp_path):
    command = [sys.executable, "-m", "spotedit.cli", "demo"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert names(tmp_path / "spotedit-demo") == {"demo.png", "steps.png"}
