"""`spotedit batch --ray` writes the same bytes as the plain loop."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from batch_files import pictures, rows, save_picture

from spotedit.batch import one, ray_data
from spotedit.batch.jobs import Job
from spotedit.batch.ray_data import _job_from, _job_text
from spotedit.batch.settings import BatchSettings
from spotedit.cli import main
from spotedit.editor import photo
from spotedit.editor.settings import EditorSettings

ROOT = Path(__file__).parents[2]


def test_a_job_crosses_to_another_process():
    job = Job(
        Path("/a/ü\udcff.png"), "ü.png", "x", 2**62, Path("/m.png"), frozenset({"seed"}), True
    )
    assert _job_from(_job_text(job)) == job
    plain = Job(Path("/a.png"), "a.png", "x", 0)
    assert _job_from(_job_text(plain)) == plain


def test_ray_that_is_not_installed(photos, out, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ray", None)
    arguments = ["batch", photos, "x", "--out", out, "--model", "tiny", "--ray"]
    assert main([str(item) for item in arguments]) == 2
    assert 'pip install "spotedit[ray]"' in capsys.readouterr().err


def test_an_address_that_is_a_picture(photos, out, capsys):
    arguments = ["batch", "--ray", photos, "x", "--out", out, "--model", "tiny"]
    assert main([str(item) for item in arguments]) == 2
    assert "put --ray last" in capsys.readouterr().err


def test_an_actor_that_cannot_be_made_says_so_instead_of_starting_again(monkeypatch, tmp_path):
    def fail(settings):
        raise RuntimeError("no driver")

    monkeypatch.setattr(ray_data, "Editor", fail)
    settings = BatchSettings(editor=EditorSettings(model="tiny"), out=tmp_path)
    assert ray_data.EditingActor(settings)({"job": ""})["stop"] == "RuntimeError: no driver"


def batch(*arguments: object, model: object = "tiny") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "spotedit.cli", "batch", *map(str, arguments)]
    paths = os.pathsep.join([str(ROOT), str(ROOT / "kernels")])
    return subprocess.run(
        [*command, "--model", str(model), "--device", "cpu", "--steps", "3"],
        capture_output=True,
        text=True,
        timeout=600,
        env=os.environ | {"PYTHONPATH": paths},
    )


@pytest.mark.full
def test_two_actors_write_the_bytes_of_the_plain_loop(tmp_path):
    pytest.importorskip("ray.data", reason="Ray is not installed")
    for seed in range(5):
        save_picture(tmp_path / "photos" / f"ü {seed}.png", seed)
    (tmp_path / "photos" / "bad.png").write_bytes(b"no picture")
    plain = batch(tmp_path / "photos", "add a hat", "--out", tmp_path / "plain")
    ray = batch(
        tmp_path / "photos", "add a hat", "--out", tmp_path / "ray", "--ray", "--ray-actors", 2
    )
    assert plain.returncode == ray.returncode == 1, ray.stderr
    assert len(pictures(tmp_path / "plain")) == 5
    assert pictures(tmp_path / "ray") == pictures(tmp_path / "plain")
    assert not (tmp_path / "ray" / ".unfinished").exists()

    def untimed(out):
        found = {row["output"]: row for row in rows(out)}
        return {
            name: {key: value for key, value in row.items() if key != "seconds"}
            for name, row in found.items()
        }

    assert untimed(tmp_path / "ray") == untimed(tmp_path / "plain")
    again = batch(
        tmp_path / "photos", "add a hat", "--out", tmp_path / "ray", "--ray", "--ray-actors", 2
    )
    assert "5 were finished before, 1 failed" in again.stdout
    assert pictures(tmp_path / "ray") == pictures(tmp_path / "plain")


@pytest.mark.full
def test_a_picture_whose_process_is_killed_each_time(tmp_path, monkeypatch, capsys):
    pytest.importorskip("ray.data", reason="Ray is not installed")
    for name in ("a", "deadly", "z"):
        save_picture(tmp_path / "photos" / f"{name}.png", 0)

    def edit_or_die(editor, path, *further, **options):
        if path.name == "deadly.png":
            os.kill(os.getpid(), signal.SIGKILL)
        return photo.edit_photo(editor, path, *further, **options)

    class DyingActor(ray_data.EditingActor):  # Ray copies a local class into the process
        def __call__(self, item):
            one.edit_photo = edit_or_die
            return super().__call__(item)

    monkeypatch.setattr(ray_data, "EditingActor", DyingActor)
    arguments = ["batch", tmp_path / "photos", "x", "--out", tmp_path / "out", "--model", "tiny"]
    arguments += ["--device", "cpu", "--steps", 3, "--ray", "--ray-actors", 1]
    assert main([str(item) for item in arguments]) == 1
    said = capsys.readouterr().out
    assert "failed in 1: its process was killed 3 times, perhaps for memory (deadly.png)" in said
    assert set(pictures(tmp_path / "out")) == {"a.png", "z.png"}
    assert not (tmp_path / "out" / ".unfinished").exists()


@pytest.mark.full
def test_a_model_that_no_actor_can_load(tmp_path):
    pytest.importorskip("ray.data", reason="Ray is not installed")
    save_picture(tmp_path / "photos" / "a.png", 0)
    (tmp_path / "model").mkdir()
    arguments = ("add a hat", "--out", tmp_path / "out", "--ray", "--ray-actors", 1)
    done = batch(tmp_path / "photos", *arguments, model=tmp_path / "model")
    assert done.returncode == 1
    assert "cannot be loaded" in done.stderr
    assert "Traceback" not in done.stderr
