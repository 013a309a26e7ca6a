"""Tests of writing: a full, read-only or missing disk costs no picture and shows no traceback."""

import argparse
import errno
import os
import resource
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from spotedit import SpotEditConfig
from spotedit.cli import calibrate, demo, main, verify
from spotedit.cli import eval as evaluate
from spotedit.cli.figure import save_figure
from spotedit.editor.errors import Failure
from spotedit.editor.loading import explain_errors
from spotedit.evaluation import run as evaluation
from spotedit.evaluation.data import DataSet, Item
from spotedit.evaluation.edits import Edit
from spotedit.evaluation.store import JsonLines
from spotedit.pictures import images
from spotedit.pictures.draw import plot_steps
from spotedit.pictures.files import (
    OutputError,
    atomic_write,
    make_folder,
    write_or_fall_back,
    write_text,
)
from spotedit.pictures.images import check_output, load_image, save_image

CODES = [errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.ENOENT]
NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (96, 96, 3), dtype=np.uint8))
BYTES = 16 * 1024  # less than NOISE needs, more than the check before the work


def refuse(code, *args, **kwargs):
    raise OSError(code, os.strerror(code))


def each_code(test):
    return pytest.mark.parametrize("code", CODES, ids=errno.errorcode.get)(test)


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """Let this process write no file beyond `size` bytes: real short writes and EFBIG."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextmanager
def mounted(folder: Path, *options: str) -> Iterator[None]:
    """Mount a small file system at `folder`."""
    command = ["mount", "-t", "tmpfs", "-o", ",".join(("size=16k", *options)), "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True).returncode != 0:
        pytest.skip("only root may mount a file system")
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture
def elsewhere(tmp_path, monkeypatch) -> dict[str, Path]:
    """Return the current, home, temporary and requested folders of the test."""
    folders = {name: tmp_path / name for name in ("current", "home", "temporary", "asked")}
    for folder in folders.values():
        folder.mkdir()
    monkeypatch.chdir(folders["current"])
    monkeypatch.setenv("HOME", str(folders["home"]))
    monkeypatch.setattr(tempfile, "tempdir", str(folders["temporary"]))
    return folders


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


# -- before the work


@each_code
def test_a_folder_that_takes_no_file(tmp_path, monkeypatch, code):
    monkeypatch.setattr(Path, "touch", partial(refuse, code))
    monkeypatch.setattr(Path, "unlink", partial(refuse, errno.EROFS))
    with pytest.raises(OutputError) as error:
        check_output(tmp_path / "out.png")
    assert f"out.png: cannot write to the folder {tmp_path} ({os.strerror(code)})" in str(
        error.value
    )


def test_a_disk_that_is_full_already(tmp_path):
    with file_size_limit(1024), pytest.raises(OutputError, match=r"out.png: .*File too large"):
        check_output(tmp_path / "out.png")
    assert files(tmp_path) == []


def test_a_name_that_is_too_long(tmp_path):
    with pytest.raises(OutputError, match="File name too long"):
        check_output(tmp_path / f"{'x' * 300}.png")


@pytest.mark.parametrize("below", ["", "folder"])
def test_a_file_in_the_place_of_a_folder(tmp_path, below, capsys):
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="the folder cannot be made"):
        make_folder(tmp_path / "file" / below)
    with pytest.raises(OutputError, match="there is no folder"):
        check_output(tmp_path / "file" / below / "out.png")
    assert main(["demo", "--out", str(tmp_path / "file" / below)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


# -- while a file is written


@each_code
def test_a_picture_that_cannot_be_finished(tmp_path, monkeypatch, code):
    def write(self, data):
        with self.open("wb") as file:
            file.write(data[: len(data) // 2])
        refuse(code)

    path = tmp_path / "out.png"
    path.write_text("old")
    monkeypatch.setattr(images, "check_output", lambda path, force: path)
    monkeypatch.setattr(Path, "write_bytes", write)
    with pytest.raises(OutputError) as error:
        save_image(NOISE, path, force=True)
    assert str(error.value).startswith(f"{path}: cannot be written ({os.strerror(code)})")
    assert "\n" not in str(error.value)
    assert path.read_text() == "old"
    assert files(tmp_path) == ["out.png"]


@each_code
def test_a_file_that_cannot_be_renamed(tmp_path, monkeypatch, code):
    monkeypatch.setattr(Path, "replace", partial(refuse, code))
    with pytest.raises(OutputError, match="cannot be written"):
        write_text(tmp_path / "r.json", "{}")
    assert files(tmp_path) == []


def test_an_interruption_is_not_hidden_by_a_folder_that_is_gone(tmp_path, monkeypatch):
    monkeypatch.setattr(Path, "unlink", partial(refuse, errno.EROFS))

    with pytest.raises(KeyboardInterrupt), atomic_write(tmp_path / "out.png"):
        raise KeyboardInterrupt


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".tif", ".bmp"])
def test_every_format_on_a_disk_without_room(tmp_path, suffix):
    # one write is cut short here; there may be no further one to raise the reason
    with file_size_limit(BYTES // 4), pytest.raises(OutputError, match="File too large"):
        save_image(NOISE, tmp_path / f"out{suffix}")
    assert files(tmp_path) == []


def test_figures_on_a_disk_without_room(tmp_path):
    steps = [{"index": 0, "kind": "full", "active": 1, "total": 2, "seconds": 0.1}]
    with file_size_limit(2048):
        with pytest.raises(OutputError, match=r"f.png: .*File too large"):
            save_figure(tmp_path / "f.png", [("", [NOISE] * 4)])
        with pytest.raises(OutputError, match=r"p.svg: .*File too large"):
            plot_steps(steps, tmp_path / "p.svg")
    assert files(tmp_path) == []


def test_a_file_system_that_is_full(elsewhere):
    with mounted(elsewhere["asked"]):
        path = elsewhere["asked"] / "out.png"
        problem = write_or_fall_back(check_output(path), partial(save_image, NOISE))
        assert "No space left on device" in problem
        assert files(elsewhere["asked"]) == []
        (elsewhere["asked"] / "rest").write_bytes(bytes(BYTES))
        with pytest.raises(OutputError, match="No space left on device"):
            check_output(path)
        assert files(elsewhere["asked"]) == ["rest"]
    assert len(files(elsewhere["current"])) == 1


def test_a_file_system_that_is_read_only(tmp_path):
    with mounted(tmp_path, "ro"), pytest.raises(OutputError, match="Read-only file system"):
        check_output(tmp_path / "out.png")


# -- what is finished is kept


def test_a_file_goes_where_it_was_asked_for(elsewhere):
    path = elsewhere["asked"] / "out.png"
    assert write_or_fall_back(path, partial(save_image, NOISE)) is None
    assert files(path.parent) == ["out.png"]


@pytest.mark.parametrize("gone", [[], ["current"], ["current", "home"]])
def test_a_finished_picture_is_written_elsewhere(elsewhere, gone):
    for name in ["asked", *gone]:
        elsewhere[name].rmdir()
    path = elsewhere["asked"] / "out.png"
    problem = write_or_fall_back(path, partial(save_image, NOISE))
    place = next(name for name in ("current", "home", "temporary") if name not in gone)
    (name,) = files(elsewhere[place])
    assert problem.startswith(f"{path}: there is no folder")
    assert problem.endswith(f"It was written to {elsewhere[place] / name} instead")
    assert "\n" not in problem
    assert np.array_equal(load_image(elsewhere[place] / name), NOISE)


def test_a_picture_that_no_folder_takes(elsewhere):
    for folder in elsewhere.values():
        folder.rmdir()
    problem = write_or_fall_back(elsewhere["asked"] / "out.png", partial(save_image, NOISE))
    assert problem.endswith("It could not be written anywhere else either, and is lost")


def test_another_file_of_that_name_is_left_alone(elsewhere):
    path = elsewhere["asked"] / "out.png"
    path.write_text("came during the edit")
    problem = write_or_fall_back(path, partial(save_image, NOISE))
    assert "already exists" in problem
    assert path.read_text() == "came during the edit"
    assert len(files(elsewhere["current"])) == 1


# -- commands


def stub(monkeypatch, module, asked, **results) -> None:
    """Replace functions of a command's module by results; the first call deletes `asked`."""

    def replacement(result, *args):
        if asked.is_dir():
            asked.rmdir()
        return result

    for name, result in results.items():
        monkeypatch.setattr(module, name, partial(replacement, result))
    monkeypatch.setattr(module, "load", lambda *args: SimpleNamespace(set_progress_bar_config=dict))


def test_demo_verify_and_calibrate_lose_nothing(elsewhere, monkeypatch, capsys):
    asked, report = elsewhere["asked"], SimpleNamespace(steps=[])
    NOISE.save("in.png")
    row = {"some": "figures"}
    stub(
        monkeypatch, demo, asked,
        _trials=[SimpleNamespace(report=report)], _row=("", [NOISE] * 4), table="table",
    )  # fmt: skip
    monkeypatch.setattr(demo, "load", lambda *args: None)
    assert main(["demo", "--out", str(asked / "d.png")]) == 1
    error = capsys.readouterr().err
    assert "spotedit demo" in error
    assert error.count("It was written to") == error.count("\n") == 2

    asked.mkdir()
    results = {
        "loop_settings": {},
        "image_to_edit": NOISE,
        "verify": row,
        "_row": row,
        "_table": "table",
    }
    stub(monkeypatch, verify, asked, **results)
    given = ["tiny", "in.png", "paint", "--device", "cpu"]
    assert main(["verify", *given, "--row", str(asked / "v.json")]) == 1
    out, error = capsys.readouterr()
    assert "table" in out
    assert error.splitlines()[-1].count("It was written to") == 1

    asked.mkdir()
    fit = SimpleNamespace(coefficients=(1.0, 2.0), r2=1.0, inputs=[0, 1], outputs=[0, 1])
    results = {"loop_settings": {}, "image_to_edit": NOISE, "calibrate": fit, "machine": {}}
    stub(monkeypatch, calibrate, asked, **results)
    assert main(["calibrate", *given, "--out", str(asked / "c.json")]) == 1
    out, error = capsys.readouterr()
    assert "TeaCache(coefficients=[1.0, 2.0])" in out
    assert error.splitlines()[-1].count("It was written to") == 1

    kept = files(elsewhere["current"])
    assert [name.split("-")[0] for name in kept] == ["c", "d", "d", "in.png", "v"]


# -- eval


def test_a_row_that_was_cut_short_is_not_there(tmp_path):
    lines = JsonLines(tmp_path, "rows")
    row = {"key": "a", "mode": "dense", "text": "x" * 900}
    lines.append(row)
    with file_size_limit(1500), pytest.raises(OutputError, match=r"rows-0.jsonl: .*File too large"):
        lines.append(row | {"key": "b"})
    assert (tmp_path / "rows-0.jsonl").stat().st_size == 1500  # it was a short write
    assert set(lines.read()) == {("a", "dense")}
    lines.append(row | {"key": "b"})
    assert set(lines.read()) == {("a", "dense"), ("b", "dense")}


@each_code
def test_a_row_file_that_cannot_be_opened(tmp_path, monkeypatch, code):
    monkeypatch.setattr(os, "open", partial(refuse, code))
    with pytest.raises(OutputError, match=os.strerror(code)):
        JsonLines(tmp_path, "rows").append({"key": "a", "mode": "dense"})


def test_a_run_on_a_full_disk_ends_and_goes_on(tmp_path, monkeypatch):
    made = []

    def edit(pipe, options, seed, config):
        made.append((options["image"].width, "dense" if config is None else "spot"))
        return Edit(options["image"], 1.0, 1, None)

    monkeypatch.setattr(evaluation, "edit", edit)
    monkeypatch.setattr(evaluation, "warm_up", lambda *args: None)
    monkeypatch.setattr(evaluation, "call_options", lambda pipe, image, *args: {"image": image})
    pictures = [NOISE.crop((0, 0, side, side)) for side in (16, 96, 17)]
    items = [
        Item(str(number), "", "", load=partial(Image.Image.copy, picture))
        for number, picture in enumerate(pictures)
    ]
    variants = {"spot": SpotEditConfig()}
    edit_all = partial(
        evaluation.edit_all, None, items, tmp_path, {"seed": 0}, {}, variants, lambda image: image
    )
    with file_size_limit(BYTES), pytest.raises(OutputError, match="File too large"):
        edit_all()
    assert files(tmp_path) == ["dense/0.png", "rows-0.jsonl", "spot/0.png"]
    assert made == [(16, "dense"), (16, "spot"), (96, "spot")]
    made.clear()
    edit_all()
    assert made == [(96, "spot"), (96, "dense"), (17, "dense"), (17, "spot")]
    rows = JsonLines(tmp_path, "rows").read()
    assert len(rows) == 6
    assert not any("problem" in row for row in rows.values())


def test_what_eval_cannot_write_is_a_failure(tmp_path, monkeypatch, capsys):
    with pytest.raises(Failure, match="disk"), explain_errors(torch.device("cpu")):
        raise OutputError("the disk is full")

    data = DataSet("none", [], [])
    monkeypatch.setattr(evaluate, "read", lambda *args: data)
    given = ["eval", str(tmp_path), "--model", "tiny", "--device", "cpu", "--out"]
    (tmp_path / "file").touch()
    assert main([*given, str(tmp_path / "file")]) == 2
    monkeypatch.setattr(Path, "touch", partial(refuse, errno.EROFS))
    assert main([*given, str(tmp_path / "new")]) == 2
    assert "Read-only file system" in capsys.readouterr().err


def test_the_table_is_printed_before_it_is_written(tmp_path, monkeypatch, capsys):
    JsonLines(tmp_path, "rows").append({"key": "a", "mode": "dense"})
    monkeypatch.setattr(evaluate, "table", lambda *args: "the table")
    monkeypatch.setattr(evaluate, "write_text", partial(refuse, errno.ENOSPC))
    with pytest.raises(OSError, match="No space"):
        evaluate._report(argparse.Namespace(out=tmp_path), DataSet("", [], []), {}, ["dense"])
    assert "the table" in capsys.readouterr().out
