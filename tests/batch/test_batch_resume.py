"""A batch that was stopped, or whose files were changed, is continued by the same command."""

import json
import multiprocessing
import random
import shutil
import time
from pathlib import Path

import pytest
from batch_files import HEIGHT, INSTRUCTION, NAMES, WIDTH, names, pictures, rows, save_picture
from PIL import Image

from spotedit.batch import one
from spotedit.pictures.lines import digest, read_lines

KILLS = 1
MANY_KILLS = 10
LONGEST_WAIT = 0.4  # seconds from the first output to the kill


def change_times(folder: Path) -> dict[str, int]:
    return {name: (folder / name).stat().st_mtime_ns for name in pictures(folder)}


# -- nothing was changed


def test_the_same_command_again_loads_no_model(run, model, photos, out, capsys):
    assert run(photos, INSTRUCTION) == 0
    before, manifest = change_times(out), (out / "manifest.jsonl").read_bytes()
    capsys.readouterr()
    assert run(photos, INSTRUCTION) == 0
    assert len(model) == 1
    assert change_times(out) == before
    assert (out / "manifest.jsonl").read_bytes() == manifest
    assert "0 edited, 4 were finished before" in capsys.readouterr().out


def test_the_folders_may_move_together(run, model, photos, out, tmp_path):
    assert run(photos, INSTRUCTION) == 0
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for folder in (photos, out):
        folder.rename(elsewhere / folder.name)
    assert run(elsewhere / "photos", INSTRUCTION, out=elsewhere / "out") == 0
    assert len(model) == 1


def test_limit_goes_on_where_it_stopped(run, photos, out):
    for expected in (2, 4, 4):
        assert run(photos, INSTRUCTION, options=("--limit", 2)) == 0
        assert len(pictures(out)) == expected


# -- files were changed


def remake(folder: Path, output: str) -> None:
    (folder / output).unlink()


def damage(folder: Path, output: str) -> None:
    data = (folder / output).read_bytes()
    (folder / output).write_bytes(data[: len(data) // 2])


@pytest.mark.parametrize("change", [remake, damage])
def test_an_output_that_is_gone_or_damaged_is_made_again(run, photos, out, change):
    assert run(photos, INSTRUCTION) == 0
    expected, times = pictures(out), change_times(out)
    change(out, "IMG_2.png")
    assert run(photos, INSTRUCTION) == 0
    assert pictures(out) == expected
    changed = {name for name, when in change_times(out).items() if when != times[name]}
    assert changed == {"IMG_2.png"}


@pytest.mark.parametrize("is_replaced", [False, True])
def test_an_output_that_a_person_retouched_is_not_overwritten(
    run, photos, out, capsys, is_replaced
):
    assert run(photos, INSTRUCTION) == 0
    save_picture(out / "IMG_2.png", 99)
    if is_replaced:
        save_picture(photos / "IMG_2.png", 98)
    before = pictures(out)
    assert run(photos, INSTRUCTION) == 2
    assert "changed since it was made" in capsys.readouterr().err
    assert pictures(out) == before
    assert run(photos, INSTRUCTION, options=("--force",)) == 0
    assert pictures(out) != before


def test_a_picture_that_was_replaced_is_made_again(run, photos, out):
    assert run(photos, INSTRUCTION) == 0
    before = pictures(out)
    save_picture(photos / "IMG_2.png", 99)
    assert run(photos, INSTRUCTION) == 0
    after = pictures(out)
    assert {name for name in NAMES if before[name] != after[name]} == {"IMG_2.png"}
    assert rows(out)[-1]["input_sha256"] == digest(photos / "IMG_2.png")


def test_a_mask_that_was_changed_is_used(run, photos, out, tmp_path):
    Image.new("L", (WIDTH, HEIGHT), 255).save(tmp_path / "mask.png")
    options = ("--mask", tmp_path / "mask.png")
    assert run(photos, INSTRUCTION, options=options) == 0
    Image.new("L", (WIDTH, HEIGHT), 0).save(tmp_path / "mask.png")
    assert run(photos, INSTRUCTION, options=options) == 0
    assert len(rows(out)) == 2 * len(NAMES)


def test_a_changed_row_of_a_list_is_made_again(run, photos, out, tmp_path):
    def write(seed):
        lines = [
            {"image": "photos/IMG_2.png", "seed": 1},
            {"image": "photos/IMG_10.png", "seed": seed},
        ]
        (tmp_path / "list.jsonl").write_text("\n".join(map(json.dumps, lines)))

    for seed in (1, 2):
        write(seed)
        assert run(tmp_path / "list.jsonl", INSTRUCTION) == 0
    assert [(row["output"], row["seed"]) for row in rows(out)] == [
        ("photos/IMG_2.png", 1), ("photos/IMG_10.png", 1), ("photos/IMG_10.png", 2),
    ]  # fmt: skip


def test_another_picture_under_a_name_that_is_taken(run, photos, out, tmp_path, capsys):
    assert run(photos, INSTRUCTION) == 0
    save_picture(tmp_path / "more" / "IMG_2.png", 9)
    assert run(tmp_path / "more", INSTRUCTION) == 2
    assert "made from another picture, ../photos/IMG_2.png" in capsys.readouterr().err


# -- settings were changed


@pytest.mark.parametrize(
    ("instruction", "options", "message"),
    [
        (INSTRUCTION, ("--threshold", "0.5"), 'config {} instead of {"threshold": 0.5}'),
        (INSTRUCTION, ("--steps", 4), '"num_inference_steps": 3} instead of'),
        (INSTRUCTION, ("--keep", "original"), 'keep "model" instead of "original"'),
        (INSTRUCTION, ("--seed", 1), "made with the seed 0 instead of 1"),
        ("remove the hat", (), "made with the instruction 'add a hat' instead of"),
    ],
)
def test_other_settings_are_refused_unless_forced(
    run, model, photos, out, capsys, instruction, options, message
):
    assert run(photos, INSTRUCTION) == 0
    before = pictures(out)
    assert run(photos, instruction, options=options) == 2
    assert message in capsys.readouterr().err
    assert pictures(out) == before
    assert len(model) == 1
    assert run(photos, instruction, options=(*options, "--force")) == 0
    assert len(rows(out)) == 2 * len(NAMES)
    assert run(photos, instruction, options=options) == 0
    assert len(model) == 2


# -- the run was stopped


def test_ctrl_c_keeps_what_is_finished(run, photos, out, monkeypatch, capsys):
    original, calls = one.edit_photo, []

    def edit_photo(*args, **kwargs):
        calls.append(args)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(one, "edit_photo", edit_photo)
        assert run(photos, INSTRUCTION) == 130
    said = capsys.readouterr()
    assert "2 edited, 2 are left" in said.out
    assert "interrupted" in said.err
    assert len(pictures(out)) == len(rows(out)) == 2
    assert not (out / ".unfinished").exists()
    assert run(photos, INSTRUCTION) == 0
    assert "2 edited, 2 were finished before" in capsys.readouterr().out


def test_an_output_without_a_row_is_known_by_its_report(run, photos, out):
    """A run that is killed between an output and its row leaves this; so do actors of Ray."""
    assert run(photos, INSTRUCTION) == 0
    times = change_times(out)
    lines = [line for line in (out / "manifest.jsonl").read_text().split("\n") if line]
    (out / "manifest.jsonl").write_text("\n".join(lines[:2]) + "\n" + lines[2][:50])
    assert run(photos, INSTRUCTION) == 0
    assert change_times(out) == times
    assert [json.loads(line)["output"] for line in lines] == [
        json.loads(line)["output"]
        for line in (out / "manifest.jsonl").read_text().split("\n")
        if line.endswith("}")
    ]


def test_a_manifest_whose_first_row_was_cut_short(run, photos, out, capsys):
    assert run(photos / "IMG_2.png", INSTRUCTION) == 0
    written = (out / "manifest.jsonl").read_bytes()
    (out / "manifest.jsonl").write_bytes(written[:8])
    assert run(photos, INSTRUCTION) == 0
    assert "3 edited, 1 were finished before" in capsys.readouterr().out
    finished = [row["output"] for row in read_lines(out / "manifest.jsonl")]
    assert sorted(finished) == sorted(NAMES)


def killed_runs(run, photos: Path, out: Path, kills: int) -> int:
    """Run the command and kill it, up to `kills` times; return how often it was killed."""
    fork = multiprocessing.get_context("fork")
    moments = random.Random(0)
    for number in range(kills):
        process = fork.Process(target=lambda: run(photos, INSTRUCTION))
        process.start()
        done = len(names(out))
        while process.is_alive() and len(names(out)) <= done:
            time.sleep(0.002)
        time.sleep(moments.uniform(0, LONGEST_WAIT))
        process.kill()
        process.join()
        if process.exitcode == 0:
            return number
    return kills


def check_killed_runs(run, photos: Path, out: Path, num_pictures: int, kills: int) -> None:
    for seed in range(num_pictures):
        save_picture(photos / f"more {seed}.png", seed)
    assert run(photos, INSTRUCTION) == 0
    expected = pictures(out)
    shutil.rmtree(out)
    assert killed_runs(run, photos, out, kills) == kills
    assert all(
        data == expected[name] for name, data in pictures(out).items() if "/." not in f"/{name}"
    )
    assert run(photos, INSTRUCTION) == 0
    assert pictures(out) == expected
    assert not (out / ".unfinished").exists()
    finished = [row["output"] for row in rows(out) if "sha256" in row]
    assert sorted(finished) == sorted(expected)  # each was made once


@pytest.mark.skipif(
    "fork" not in multiprocessing.get_all_start_methods(), reason="needs a copy of this process"
)
def test_a_killed_run_is_continued_to_the_same_bytes(run_pipeline, photos, out):
    check_killed_runs(run_pipeline, photos, out, 4, KILLS)


@pytest.mark.full
@pytest.mark.skipif(
    "fork" not in multiprocessing.get_all_start_methods(), reason="needs a copy of this process"
)
def test_a_run_that_is_killed_ten_times(run_pipeline, photos, out):
    check_killed_runs(run_pipeline, photos, out, 60, MANY_KILLS)
