"""Tests of `spotedit verify`: the figures, and the row that says nothing about the pictures."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from spotedit.cli import main
from spotedit.evaluation.quality import seam
from spotedit.tiny.scenes import make_scene

SHARED = sorted((Path(__file__).parents[2] / "bench" / "results" / "community").glob("*.json"))


@pytest.fixture
def given(tmp_path) -> list[str]:
    scene = make_scene(0, kind="recolour", split="heldout")
    path = tmp_path / "private-name.png"
    scene.source_image.save(path)
    return [str(path), scene.instruction]


def test_verify(given, tmp_path, capsys):
    row = tmp_path / "row.json"
    arguments = ["verify", "tiny", *given, "--steps", "6", "--device", "cpu", "--row", str(row)]
    assert main(arguments) == 0
    out = capsys.readouterr().out
    assert "| private-name.png | " in out
    text = row.read_text()
    for private in (*given, "private", str(tmp_path)):
        assert private not in text
    found = json.loads(text)
    (figures,) = found["edits"]
    assert (found["model"], found["settings"]["num_inference_steps"]) == ("tiny", 6)
    assert 0 < figures["r"] < 1
    assert figures["seconds_spot"] > 0
    assert figures["size"] == [128, 128]
    assert figures["forwards"] == 6
    assert 0 < figures["flops_saved"] < 1
    assert figures["cache_bytes"] > 0
    # a reused token is the source through the VAE, apart from the influence of its neighbours
    assert figures["background_to_floor"] > 40
    assert figures["background_spot"] == pytest.approx(figures["background_floor"], abs=0.5)
    assert figures["seam_spot"] < figures["seam_floor"] + 0.5
    assert main(arguments) == 2
    assert "already exists" in capsys.readouterr().err


def test_forwards_that_a_temporal_method_skips_are_part_of_the_loop(given, tmp_path):
    row = tmp_path / "row.json"
    arguments = ["verify", "tiny", *given, "--steps", "8", "--device", "cpu", "--row", str(row)]
    assert main([*arguments, "--temporal", "TaylorSeer(interval=2)", "--dilation", "0"]) == 0
    found = json.loads(row.read_text())
    (figures,) = found["edits"]
    assert figures["skipped_forwards"] > 0
    assert figures["forwards"] + figures["skipped_forwards"] == 8
    assert found["settings"]["temporal"]["interval"] == 2
    assert found["settings"]["dilation"] == 0


def test_the_floor_is_the_source_through_the_vae(given):
    import spotedit.tiny
    from bench.edits import round_trip as through_the_vae
    from spotedit.evaluation.edits import call_options, round_trip

    pipe = spotedit.tiny.load()
    image = Image.open(given[0])
    options = call_options(pipe, image, given[1], {})
    floor = np.asarray(round_trip(pipe, options, (16, 16)), dtype=np.int16)
    assert np.abs(floor - through_the_vae(pipe, np.asarray(image))).max() <= 1


def test_where_nothing_is_skipped_the_reason_is_printed(given, tmp_path, capsys):
    row = tmp_path / "row.json"
    assert main(["verify", "tiny", *given, "--steps", "1", "--row", str(row)]) == 0
    assert "private-name.png: nothing was skipped: too few steps" in capsys.readouterr().out
    (figures,) = json.loads(row.read_text())["edits"]
    assert "background_spot" not in figures


def test_two_loops_are_not_compared(given, tmp_path, monkeypatch, capsys):
    from spotedit.evaluation import verify

    def other(pipe, options, seed, config):
        fewer = options | {"num_inference_steps": 3} if config is None else options
        return edit(pipe, fewer, seed, config)

    edit = verify.edit
    monkeypatch.setattr(verify, "edit", other)
    row = tmp_path / "row.json"
    assert main(["verify", "tiny", *given, "--steps", "4", "--row", str(row)]) == 2
    assert "4 times in spot and 3 times in the other mode" in capsys.readouterr().err
    assert not row.exists()


@pytest.mark.parametrize("path", SHARED, ids=[path.name for path in SHARED])
def test_a_shared_row_is_one_of_verify(given, tmp_path, path):
    """Check that every row in the repository has the command's fields and no path."""
    fresh = tmp_path / "row.json"
    assert main(["verify", "tiny", *given, "--steps", "2", "--row", str(fresh)]) == 0
    ours, shared = (json.loads(file.read_text()) for file in (fresh, path))
    assert shared.keys() == ours.keys()
    assert {"seed", "offload", "num_inference_steps"} <= shared["settings"].keys()
    assert shared["edits"]
    for edit in shared["edits"]:
        assert ours["edits"][0].keys() >= edit.keys()
    assert not re.search(r"\\|[/~](home|root|Users|tmp)/", path.read_text())


def test_every_picture_needs_an_instruction(given, tmp_path, capsys):
    row = str(tmp_path / "row.json")
    assert main(["verify", "tiny", *given, given[0], "--row", row]) == 2
    assert "PICTURE INSTRUCTION" in capsys.readouterr().err


def test_a_local_model_is_not_named(given, tmp_path, monkeypatch):
    import spotedit.tiny

    folder, row = tmp_path / "secret-model", tmp_path / "row.json"
    folder.mkdir()
    monkeypatch.setattr("spotedit.cli.verify.load", lambda *args: spotedit.tiny.load())
    assert main(["verify", str(folder), *given, "--steps", "2", "--row", str(row)]) == 0
    assert "secret-model" not in row.read_text()


def test_the_seam_is_a_ring_of_one_token():
    region = np.zeros((5, 6), dtype=bool)
    region[1, 1] = region[1, 2] = True
    ring = seam(region, (10, 12))
    expected = np.zeros_like(region)
    expected[:3, :4] = True
    expected[region] = False
    assert np.array_equal(ring, expected.repeat(2, axis=0).repeat(2, axis=1))
    assert not seam(np.ones((3, 3), dtype=bool), (6, 6)).any()
