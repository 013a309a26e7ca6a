"""mypy --strict and pyright accept right uses of the public names, and find the wrong ones."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = [str(ROOT), str(ROOT / "kernels")]
SCRIPT = """\
from typing import Unpack

import numpy as np
from PIL import Image

import spotedit
from spotedit.tiny import load, make_scene


def edit(
    pipe: object, source: Image.Image, **options: Unpack[spotedit.Overrides]
) -> spotedit.EditReport:
    with spotedit.enable(pipe, **options) as handle:
        handle.set_mask(np.ones((16, 16)), mode="union")
    assert handle.report is not None
    return handle.report


pipe = load()
scene = make_scene(3)
image = pipe(image=scene.source_image, prompt=scene.instruction).images[0]
config = spotedit.SpotEditConfig(judge="l2", threshold="auto", reset_steps=(4, 8), dilation=1)
handle: spotedit.Handle = spotedit.enable(pipe, config, temporal=spotedit.TeaCache(0.1))
spotedit.enable(pipe, fusion=lambda sigma: sigma, threshold=None, on_misaligned="dense")
report = edit(pipe, image, threshold=0.1, cache_dtype="int8")
step: spotedit.Step = report.steps[0]
ratio: float = step["active"] / step["total"]
print(report.summary(), report.images[0].mean_ratio, report.unedited, report.mask_note)
overlay: Image.Image = report.overlay(image)
draft: spotedit.Preview = handle.preview(image=image, prompt="paint it")
size: int = spotedit.estimate(pipe, 128, 128, cache_dtype="int8") + draft.region.sum()
spotedit.disable(pipe)

spotedit.enable(pipe, treshold=0.3)  # wrong
spotedit.enable(pipe, threshold="0.3")  # wrong
spotedit.enable(pipe, judge="percetual")  # wrong
spotedit.SpotEditConfig(judge="percetual")  # wrong
spotedit.SpotEditConfig(fusion="linear")  # wrong
spotedit.SpotEditConfig(on_misaligned="stop")  # wrong
spotedit.SpotEditConfig(impl="cuda")  # wrong
spotedit.SpotEditConfig(temporal=spotedit.SpotEditConfig())  # wrong
spotedit.TeaCache(threshold="auto")  # wrong
spotedit.estimate(pipe, 128, 128, cache_dype="int8")  # wrong
spotedit.disble(pipe)  # wrong
handle.set_mask(None, mode="intersection")  # wrong
handle.report.summary()  # wrong
step["sigm"]  # wrong
step["active"].item()  # wrong
report.step  # wrong
report.steps.summary()  # wrong
edit(pipe, image, dilatation=1)  # wrong
"""
WRONG_LINES = [
    number for number, line in enumerate(SCRIPT.splitlines(), 1) if line.endswith("# wrong")
]


@pytest.fixture
def script(tmp_path) -> Path:
    (tmp_path / "script.py").write_text(SCRIPT)
    return tmp_path / "script.py"


@pytest.mark.full
def test_mypy_finds_the_wrong_lines_and_no_others(script, pytestconfig):
    pytest.importorskip("mypy")
    # The first run takes minutes, because it reads all of PyTorch; later ones read the cache.
    cache = str(pytestconfig.cache.mkdir("mypy"))
    options = ["--strict", "--follow-imports=silent", "--cache-dir", cache]
    command = [sys.executable, "-m", "mypy", *options, script.name]
    environment = os.environ | {"MYPYPATH": os.pathsep.join(SOURCES)}
    result = subprocess.run(
        command, cwd=script.parent, env=environment, capture_output=True, text=True
    )
    errors = {int(line) for line in re.findall(r"^script\.py:(\d+): error", result.stdout, re.M)}
    assert sorted(errors) == WRONG_LINES, result.stdout + result.stderr


@pytest.mark.full
def test_pyright_finds_the_wrong_lines_and_no_others(script):
    pytest.importorskip("pyright")
    settings = {"extraPaths": SOURCES, "reportUnusedExpression": False}
    (script.parent / "pyrightconfig.json").write_text(json.dumps(settings))
    command = [sys.executable, "-m", "pyright", "--outputjson", "--pythonpath", sys.executable]
    result = subprocess.run(command, cwd=script.parent, capture_output=True, text=True)
    errors = {
        item["range"]["start"]["line"] + 1
        for item in json.loads(result.stdout)["generalDiagnostics"]
        if item["severity"] == "error"
    }
    assert sorted(errors) == WRONG_LINES, result.stdout + result.stderr
