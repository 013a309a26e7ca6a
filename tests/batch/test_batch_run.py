"""Running a batch: what it writes, what it says, and how it goes on after failures."""

import errno
import json
import multiprocessing
import os
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from batch_files import HEIGHT, INSTRUCTION, NAMES, WIDTH, pictures, rows, save_picture
from PIL import Image
from small_kontext import PromptedKontext, prompted_kontext

import spotedit
from spotedit.batch import one
from spotedit.editor import photo
from spotedit.pictures.files import OutputError
from spotedit.pictures.lines import digest

MAX_FILE_BYTES = 6000  # more than the probe that is written first, less than a picture


def all_files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


# -- what is written


def test_every_picture_has_an_output_a_report_and_a_row(run, model, photos, out, capsys):
    assert run(photos, INSTRUCTION) == 0
    reports = {f"reports/{name}.json" for name in NAMES}
    assert all_files(out) == {*NAMES, *reports, "manifest.jsonl"}
    assert len(model) == 1
    for row in rows(out):
        assert digest(out / row["output"]) == row["sha256"]
        assert digest(out / row["input"]) == row["input_sha256"]
        assert (row["instruction"], row["seed"], row["doubts"]) == (INSTRUCTION, 0, [])
        assert row["seconds"] > 0
        report = json.loads((out / "reports" / f"{row['output']}.json").read_text())
        assert report["row"] == row
        assert len(report["report"]["steps"]) == 3
    said = capsys.readouterr().out
    assert "4 edited" in said
    assert re.search(r"\d s a picture \(median", said)
    assert re.search(r"region: \d+% of a picture", said)


def test_only_own_leftovers_are_removed(run, photos, out):
    (out / ".unfinished" / "folder").mkdir(parents=True)
    for name in ("0123456789abcdef.png", ".0123456789abcdef-01234567.png", "mine.png"):
        (out / ".unfinished" / name).touch()
    assert run(photos, INSTRUCTION) == 0
    assert {path.name for path in (out / ".unfinished").iterdir()} == {"folder", "mine.png"}


def test_an_output_is_the_pipelines_picture(run_pipeline, photos, out):
    assert (
        run_pipeline(photos / "IMG_2.png", INSTRUCTION, options=("--keep", "model", "--seed", 4))
        == 0
    )
    pipe = prompted_kontext()
    with spotedit.enable(pipe):
        edited = pipe(
            image=Image.open(photos / "IMG_2.png"),
            prompt=INSTRUCTION,
            num_inference_steps=3,
            generator=torch.Generator().manual_seed(4),
        ).images[0]
    assert np.array_equal(edited, Image.open(out / "IMG_2.png"))


@pytest.mark.parametrize(
    ("keep", "other"), [("original", "save_image"), ("model", "keep_original")]
)
def test_keep_chooses_what_writes_the_output(run, photos, out, monkeypatch, keep, other):
    def refuse(*args, **kwargs):
        raise AssertionError

    monkeypatch.setattr(photo, other, refuse)
    assert run(photos, INSTRUCTION, options=("--keep", keep)) == 0


def test_what_could_not_be_kept_is_said(run, photos, out, monkeypatch, capsys):
    def keep_original(path, edited, to, force=False):
        edited.picture.save(to)
        return ["the depth of 16 bits is lost"]

    monkeypatch.setattr(photo, "keep_original", keep_original)
    assert run(photos, INSTRUCTION, options=("--keep", "original")) == 0
    assert "note in 4: the depth of 16 bits is lost" in capsys.readouterr().out


def test_a_format_for_all(run, photos, out):
    assert run(photos, INSTRUCTION, options=("--format", "webp")) == 0
    assert set(pictures(out)) == {str(Path(name).with_suffix(".webp")) for name in NAMES}
    assert Image.open(out / "IMG_2.webp").format == "WEBP"


def test_a_list_decides_for_every_row(run, photos, out, tmp_path):
    entries = [
        {"image": "photos/IMG_2.png", "output": "a", "seed": 1},
        {"image": "photos/IMG_2.png", "output": "b", "seed": 2},
        {"image": "photos/IMG_2.png", "output": "c", "instruction": "other", "seed": 1},
    ]
    (tmp_path / "list.jsonl").write_text("\n".join(map(json.dumps, entries)))
    assert run(tmp_path / "list.jsonl", INSTRUCTION, options=("--keep", "model")) == 0
    written = pictures(out)
    assert written.keys() == {"a.png", "b.png", "c.png"}
    assert written["a.png"] != written["b.png"]
    assert [row["instruction"] for row in rows(out)] == [INSTRUCTION, INSTRUCTION, "other"]


@pytest.mark.parametrize("where", ["file", "folder"])
def test_a_mask_decides_where_pictures_change(run_pipeline, photos, out, tmp_path, where):
    left = np.arange(WIDTH) < WIDTH // 2 * np.ones((HEIGHT, 1))
    masks = tmp_path / "masks"
    for name in NAMES if where == "folder" else ["one.png"]:
        (masks / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(left).save((masks / name).with_suffix(".png"))
    mask = masks if where == "folder" else masks / "one.png"
    assert (
        run_pipeline(photos, INSTRUCTION, options=("--mask", mask, "--mask-mode", "replace")) == 0
    )
    for name in NAMES:
        report = json.loads((out / "reports" / f"{name}.json").read_text())
        region = np.array(report["report"]["region"], dtype=bool)
        assert region[:, : region.shape[1] // 2].all()
        assert not region[:, region.shape[1] // 2 :].any()


def test_doubts_are_summed_up(run_pipeline, photos, out, tmp_path, capsys):
    Image.new("L", (WIDTH, HEIGHT)).save(tmp_path / "black.png")
    options = ("--threshold", "1e9", "--judge", "l2")
    assert run_pipeline(photos, INSTRUCTION, options=options) == 0
    said = capsys.readouterr().out
    assert re.search(r"doubt in 4: .*the picture is the source.*\(beach/b & <c>.png, ", said)
    assert "and 1 more)" in said
    assert all(row["doubts"] for row in rows(out))


# -- bad pictures


def test_a_bad_picture_does_not_stop_the_others(run, photos, out, tmp_path, capsys):
    (photos / "IMG_2.png").write_bytes(b"no picture")
    (photos / "IMG_10.png").write_bytes((photos / "IMG_10.png").read_bytes()[:200])
    assert run(photos, INSTRUCTION) == 1
    assert set(pictures(out)) == {"beach/ünï 1.jpg", "beach/b & <c>.png"}
    said = capsys.readouterr()
    assert "failed in 1: not a picture that Pillow can read (10 bytes)" in said.out
    assert "damaged or cut short" in said.out
    assert "2 of 4 pictures failed" in said.err
    save_picture(photos / "IMG_2.png", 0)
    save_picture(photos / "IMG_10.png", 1)
    assert run(photos, INSTRUCTION) == 0
    assert set(pictures(out)) == set(NAMES)
    assert "2 edited, 2 were finished before" in capsys.readouterr().out


def test_a_picture_of_a_list_that_does_not_exist(run, photos, out, tmp_path, capsys):
    (tmp_path / "list.csv").write_text("image\nphotos/IMG_2.png\nnowhere.png\nnowhere.heif\n")
    assert run(tmp_path / "list.csv", INSTRUCTION) == 1
    assert "failed in 2: no such file" in capsys.readouterr().out
    assert set(pictures(out)) == {"photos/IMG_2.png"}


def test_a_picture_without_its_mask_is_not_edited(run, photos, out, tmp_path, capsys):
    save_picture(tmp_path / "masks" / "IMG_2.png", 0)
    Image.new("L", (WIDTH + 4, HEIGHT), 255).save(tmp_path / "masks" / "IMG_10.png")
    assert run(photos, INSTRUCTION, options=("--mask", tmp_path / "masks")) == 1
    assert set(pictures(out)) == {"IMG_2.png"}
    problems = [row["problem"] for row in rows(out) if "problem" in row]
    assert sum("no such file" in problem for problem in problems) == 2
    assert sum("expected the aspect ratio" in problem for problem in problems) == 1


def test_one_picture_that_takes_too_much_memory(run_pipeline, photos, out, monkeypatch, capsys):
    encode_prompt = PromptedKontext.encode_prompt
    calls = []

    def run_out_of_memory(pipe, **arguments):
        calls.append(arguments)
        if len(calls) == 2:
            raise torch.OutOfMemoryError
        return encode_prompt(pipe, **arguments)

    monkeypatch.setattr(PromptedKontext, "encode_prompt", run_out_of_memory)
    assert run_pipeline(photos, INSTRUCTION) == 1
    assert "failed in 1: out of memory on cpu" in capsys.readouterr().out
    assert len(calls) == len(NAMES)
    assert len(pictures(out)) == len(NAMES) - 1


def test_an_unexpected_error_names_its_kind(run, photos, out, monkeypatch, capsys):
    def edit_photo(*args, **kwargs):
        raise ZeroDivisionError("by zero")

    monkeypatch.setattr(one, "edit_photo", edit_photo)
    assert run(photos, INSTRUCTION) == 1
    assert "failed in 4: ZeroDivisionError: by zero" in capsys.readouterr().out


def test_a_picture_that_is_replaced_while_it_is_edited(run, photos, out, monkeypatch):
    original = one.edit_photo

    def edit_photo(editor, path, *args, **kwargs):
        result = original(editor, path, *args, **kwargs)
        if path.name == "IMG_2.png":
            save_picture(path, 99)
        return result

    monkeypatch.setattr(one, "edit_photo", edit_photo)
    assert run(photos, INSTRUCTION) == 1
    assert set(pictures(out)) == {*NAMES} - {"IMG_2.png"}
    assert any("changed while it was edited" in row.get("problem", "") for row in rows(out))


def test_a_problem_that_is_no_valid_unicode_is_printed(run, photos, out, tmp_path, capsys):
    entries = [{"image": "photos/IMG_2.png", "mask": "\udcff"}, {"image": "photos/IMG_10.png"}]
    (tmp_path / "list.jsonl").write_text("\n".join(map(json.dumps, entries)))
    assert run(tmp_path / "list.jsonl", INSTRUCTION) == 1
    assert "\\udcff: no such file" in capsys.readouterr().err
    assert set(pictures(out)) == {"photos/IMG_10.png"}


# -- the folder of the outputs


def test_a_full_disk_stops_the_run_and_loses_nothing(run, photos, out, monkeypatch, capsys):
    original, written = one.write_photo, []

    def fill_up(path, edited, to, *further, **options):
        written.append(path)
        if len(written) == 3:
            to.write_bytes(b"the first bytes")
            full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            raise OutputError(f"{to}: cannot be written ({full.strerror})") from full
        return original(path, edited, to, *further, **options)

    with monkeypatch.context() as patch:
        patch.setattr(one, "write_photo", fill_up)
        assert run(photos, INSTRUCTION) == 1
    said = capsys.readouterr()
    assert "No space left on device" in said.err
    assert ".unfinished" not in said.err
    assert "2 edited" in said.out
    assert len(written) == 3
    assert len(pictures(out)) == len(rows(out)) == 2
    assert not (out / ".unfinished").exists()
    assert run(photos, INSTRUCTION) == 0
    assert set(pictures(out)) == set(NAMES)


@pytest.mark.skipif(
    "fork" not in multiprocessing.get_all_start_methods(), reason="needs a copy of this process"
)
def test_files_that_the_system_cuts_short(run, photos, out):
    """A limit on the size of files, as `ulimit -f` sets it, fails like a full disk."""

    def run_with_limit():
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (MAX_FILE_BYTES, MAX_FILE_BYTES))
        sys.exit(run(photos, INSTRUCTION, options=("--keep", "model")))

    process = multiprocessing.get_context("fork").Process(target=run_with_limit)
    process.start()
    process.join()
    assert process.exitcode == 1
    assert pictures(out) == {}
    assert rows(out) == []
    assert run(photos, INSTRUCTION, options=("--keep", "model")) == 0
    assert set(pictures(out)) == set(NAMES)


def test_a_manifest_that_cannot_be_written_stops_the_run(run, photos, out, monkeypatch, capsys):
    def fail(path, row):
        raise OutputError(f"{path}: a row cannot be written (No space left on device)")

    with monkeypatch.context() as patch:
        patch.setattr("spotedit.batch.manifest.append_line", fail)
        assert run(photos, INSTRUCTION) == 1
    assert "a row cannot be written" in capsys.readouterr().err
    finished = pictures(out)
    assert len(finished) == 1
    assert run(photos, INSTRUCTION) == 0
    assert "3 edited, 1 were finished before" in capsys.readouterr().out


def test_an_encoder_that_fails_is_the_pictures_own_problem(run, photos, out, monkeypatch):
    def keep_original(path, edited, to, force=False):
        if path.name == "IMG_2.png":
            raise OutputError("too wide for this format") from OSError("encoding error 5")
        edited.picture.save(to)
        return []

    monkeypatch.setattr(photo, "keep_original", keep_original)
    assert run(photos, INSTRUCTION, options=("--keep", "original")) == 1
    assert set(pictures(out)) == {*NAMES} - {"IMG_2.png"}


def test_a_folder_that_cannot_be_written_to(run, model, photos, out, monkeypatch, capsys):
    def refuse(path):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr("spotedit.cli.batch.try_writing", refuse)
    assert run(photos, INSTRUCTION) == 2
    assert "Read-only file system" in capsys.readouterr().err
    assert model == []


def test_a_file_in_place_of_the_folder(run, model, photos, out, capsys):
    out.write_text("mine")
    assert run(photos, INSTRUCTION) == 2
    assert "the folder cannot be made" in capsys.readouterr().err
    assert model == []
    assert out.read_text() == "mine"


def test_a_manifest_that_cannot_be_opened(run, model, photos, out, capsys):
    (out / "manifest.jsonl").mkdir(parents=True)
    assert run(photos, INSTRUCTION) == 2
    assert "manifest.jsonl: cannot be written" in capsys.readouterr().err
    assert model == []


@pytest.mark.parametrize("name", ["IMG_2.png", "reports/IMG_2.png.json", "manifest.jsonl"])
def test_other_files_are_not_overwritten(run, model, photos, out, capsys, name):
    (out / name).parent.mkdir(parents=True)
    (out / name).write_text("mine")
    assert run(photos, INSTRUCTION) == 2
    assert "not made by spotedit batch" in capsys.readouterr().err
    assert (out / name).read_text() == "mine"
    assert model == []


def test_force_overwrites_other_files(run, photos, out):
    out.mkdir()
    (out / "IMG_2.png").write_text("mine")
    (out / "IMG_3.png").write_text("mine too")
    assert run(photos, INSTRUCTION, options=("--force",)) == 0
    assert Image.open(out / "IMG_2.png").size == (WIDTH, HEIGHT)
    assert (out / "IMG_3.png").read_text() == "mine too"


def test_a_file_that_appears_meanwhile_is_not_overwritten(run, photos, out, monkeypatch):
    original = one.edit_photo

    def edit_photo(editor, path, *args, **kwargs):
        if path.name == "IMG_2.png":
            (out / "IMG_2.png").write_text("mine")
        return original(editor, path, *args, **kwargs)

    monkeypatch.setattr(one, "edit_photo", edit_photo)
    assert run(photos, INSTRUCTION) == 1
    assert (out / "IMG_2.png").read_text() == "mine"


def test_two_runs_in_one_folder(run, model, photos, out, capsys):
    fcntl = pytest.importorskip("fcntl")
    out.mkdir()
    with (out / "manifest.jsonl").open("ab") as manifest:
        fcntl.flock(manifest, fcntl.LOCK_EX)
        assert run(photos, INSTRUCTION) == 2
    assert "another run of spotedit batch is at work" in capsys.readouterr().err
    assert model == []


# -- dry run


def test_a_dry_run_writes_nothing_and_loads_no_model(run, model, photos, out, capsys):
    (photos / "IMG_2.png").write_bytes(b"no picture")
    (photos / "notes.txt").touch()
    assert run(photos, INSTRUCTION, options=("--dry-run",)) == 0
    said = capsys.readouterr().out
    assert "IMG_10.png: to do (new)" in said
    assert "not a picture that Pillow can read" in said
    assert "3 to do, 0 finished, 1 cannot be read" in said
    assert "passed over 1 files that are no pictures: 1 .txt" in said
    assert "time and memory: unknown" in said
    assert model == []
    assert not out.exists()


def test_a_dry_run_estimates_from_what_is_finished(run, photos, out, capsys):
    assert run(photos, INSTRUCTION, options=("--limit", 1)) == 0
    before = all_files(out)
    capsys.readouterr()
    assert run(photos, INSTRUCTION, options=("--dry-run",)) == 0
    said = capsys.readouterr().out
    assert "3 to do, 1 finished, 0 cannot be read" in said
    seconds = rows(out)[0]["seconds"]
    assert f"{seconds:.2f} s each (median of the 1 finished here)" in said
    assert re.search(r"memory: 0\.\d MiB for the cache", said)
    assert all_files(out) == before
