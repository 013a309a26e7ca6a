"""A folder of photographs, and `spotedit batch` with a random pipeline."""

import random
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from batch_files import HEIGHT, NAMES, WIDTH, save_picture
from PIL import Image
from small_kontext import PromptedKontext, prompted_kontext

import spotedit
from spotedit.cli import main
from spotedit.editor import editor
from spotedit.report import EditReport


@pytest.fixture
def photos(tmp_path) -> Path:
    """Make a folder of pictures."""
    for seed, name in enumerate(NAMES):
        save_picture(tmp_path / "photos" / name, seed)
    return tmp_path / "photos"


@pytest.fixture
def out(tmp_path) -> Path:
    return tmp_path / "out"


@pytest.fixture
def model(monkeypatch) -> list[object]:
    """Let editors load random pipelines; return the list of those that they load."""
    pipe, loaded = one_pipeline(), []

    def load(*args):
        loaded.append(pipe)
        return pipe

    monkeypatch.setattr(editor, "load", load)
    return loaded


@pytest.fixture
def run_pipeline(model, out) -> Callable[..., int]:
    """Return a function that runs `spotedit batch INPUTS --out OUT` with few steps."""

    def command(*inputs: object, out: Path = out, options: tuple[object, ...] = ()) -> int:
        arguments = ["batch", *inputs, "--out", out, "--model", "some/model", "--device", "cpu"]
        return main([str(item) for item in (*arguments, "--steps", 3, *options)])

    return command


@pytest.fixture
def run(run_pipeline, monkeypatch) -> Callable[..., int]:
    """Return the same function, whose editor paints a picture at once instead of editing it.

    The painted picture itself is the output, unless `options` has another --keep.
    """
    monkeypatch.setattr(editor.Editor, "edit", paint)

    def command(*inputs: object, options: tuple[object, ...] = (), **folder: Path) -> int:
        return run_pipeline(*inputs, options=("--keep", "model", *options), **folder)

    return command


def paint(self, image, instruction, *, seed=0, mask=None, mask_mode="intersect", on_step=None):
    colour = random.Random(f"{instruction} {seed}").randrange(256)
    return editor.Edited(image, image.point(lambda value: value ^ colour), real_report(), 0.01)


@cache
def one_pipeline() -> PromptedKontext:
    return prompted_kontext()


@cache
def real_report() -> EditReport:
    """Return the report of an edit of 3 steps by the random pipeline."""
    pipe = prompted_kontext()
    with spotedit.enable(pipe) as handle:
        pipe(image=Image.new("RGB", (WIDTH, HEIGHT)), prompt="", num_inference_steps=3)
    return handle.report
