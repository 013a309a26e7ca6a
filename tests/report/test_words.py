"""What a call says of itself: one log record, the summary, the exit status of `spotedit edit`."""

import logging
from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode

import spotedit
from spotedit.cli import main
from spotedit.judge.misalignment import Misalignment

GRID = (6, 8)  # tokens of the random pipeline's call
SQUARE = {"height": 48, "width": 48, "max_area": 48 * 48}
NOWHERE, LEFT = np.zeros(GRID), np.arange(GRID[1]) < np.full(GRID, 4)
SHIFT = Misalignment("shift", (8.0, 8.0), 1.0, 1.0)
UNEDITED = "no token was judged to change: the picture is the source"


@pytest.fixture
def call(pipe, arguments, caplog) -> Callable[..., tuple]:
    """A call of the enabled pipeline; returns its report and its log records."""
    caplog.set_level(logging.INFO, logger="spotedit")

    def run(given=None, mask=None, mode="intersect", **config):
        with spotedit.enable(pipe, **{"judge": "l2", "threshold": 0.0, **config}) as handle:
            handle.set_mask(mask, mode)
            pipe(**arguments(**given or {}))
        records = [(r.levelname, r.getMessage()) for r in caplog.records if r.name == "spotedit"]
        return handle.report, records

    return run


@pytest.mark.parametrize(
    ("given", "config", "level", "words"),
    [
        (SQUARE, {}, "WARNING", "nothing was skipped: the output's token grid, 6 x 6, differs"),
        (
            {"image": None, **SQUARE},
            {},
            "WARNING",
            "nothing was skipped: the call has no condition image",
        ),
        ({"num_inference_steps": 1}, {}, "WARNING", "nothing was skipped: too few steps"),
        ({}, {"spatial": False}, "INFO", "nothing was skipped: no token may be reused"),
        ({}, {"threshold": 1e9}, "WARNING", UNEDITED),
        ({"batch": 2}, {"threshold": 1e9}, "WARNING", "to change in 2 of 2 images: there"),
        ({}, {"mask": NOWHERE, "mode": "replace"}, "WARNING", "the mask keeps every token, so"),
        (
            {"batch": 2},
            {"mask": np.stack([LEFT, NOWHERE])},
            "WARNING",
            "no token was judged to change in 1 of 2 images: there the picture is the source",
        ),
    ],
)
def test_a_call_with_a_surprise_logs_one_record(call, given, config, level, words):
    report, records = call(given, **config)
    assert [record[0] for record in records] == [level]
    assert records[0][1].startswith("FluxKontextPipeline: ")
    assert words in records[0][1]
    said = records[0][1].removeprefix("FluxKontextPipeline: ")
    if report.batch == 1:
        assert said in report.summary().splitlines()


@pytest.mark.parametrize(
    ("choice", "words"),
    [("cache", "only the condition is cached"), ("dense", "the rest ran dense")],
)
def test_a_frame_that_moved_logs_one_warning(call, monkeypatch, choice, words):
    monkeypatch.setattr("spotedit.judge.judging.detect", lambda *args: SHIFT)
    report, [(level, text)] = call(on_misaligned=choice)
    assert level == "WARNING"
    assert "the whole frame does not match the source" in text
    assert words in text
    assert report.unedited == 0


def test_an_edit_as_expected_logs_nothing(call):
    for config in ({}, {"mask": LEFT, "mode": "replace"}):
        report, records = call(**config)
        assert records == []
        assert report.unedited == 0


def test_the_last_judgement_decides_whether_a_picture_is_edited(call):
    def judge(counts):
        """Scores 1 in the judgements of `counts`, in the order of the call, and 0 in others."""
        numbers = iter(range(100))

        def scores(x0):
            return torch.full(x0.shape[:2], float(next(numbers) in counts))

        judge = {"judge": lambda *args: scores, "threshold": 0.5, "judge_every": 1}
        return call(**judge, initial_steps=1, reset_steps=(3, 5))[0]

    vanished = judge(counts=range(1))
    assert 0 < vanished.mean_ratio < 1
    assert vanished.unedited == 1
    assert "the region shrank from 48 tokens to none: the picture is the" in vanished.summary()
    returned = judge(counts=range(3, 100))
    assert 0 < returned.mean_ratio < 1
    assert returned.unedited == 0
    assert returned.doubts[0].startswith("the full step 5 found that 48 tokens reused until")


def test_a_call_that_does_not_reach_its_end_is_not_called_unedited(call, pipe, caplog):
    def stop(pipe, step, timestep, tensors):
        pipe._interrupt = True
        return {}

    def fail(pipe, step, timestep, tensors):
        raise RuntimeError("no more")

    report, records = call({"callback_on_step_end": stop}, threshold=1e9)
    assert (report.unedited, records) == (0, [])
    for config in ({"threshold": 1e9}, {"initial_steps": 8}):
        with pytest.raises(RuntimeError, match="no more"):
            call({"callback_on_step_end": fail}, **config)
    assert caplog.records == []


def test_a_preview_is_not_called_unedited(pipe, arguments, caplog):
    caplog.set_level(logging.INFO, logger="spotedit")
    given = arguments()
    del given["output_type"]
    preview = spotedit.enable(pipe, judge="l2", threshold=1e9).preview(**given)
    assert not preview.region.any()
    assert preview.report.unedited == 0
    assert caplog.records == []


def test_the_report_says_which_images_are_the_source(call):
    report, _ = call({"batch": 2}, mask=np.stack([LEFT, NOWHERE]))
    assert report.unedited == report.to_dict()["unedited"] == 1
    assert [image.unedited for image in report.images] == [0, 1]
    assert "in 1 of 2 images (number 1): there the picture is the source" in report.summary()
    assert UNEDITED in report.images[1].summary()
    assert "no token was judged" not in report.images[0].summary()


class Reads(TorchDispatchMode):
    """Counts how often the host reads values of a tensor."""

    def __init__(self, monkeypatch) -> None:
        super().__init__()
        self.count = 0
        for name in ("tolist", "cpu", "numpy"):  # these dispatch nothing on a CPU
            monkeypatch.setattr(torch.Tensor, name, self._counted(getattr(torch.Tensor, name)))

    def _counted(self, method):
        def read(*args, **kwargs):
            self.count += 1
            return method(*args, **kwargs)

        return read

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func.overloadpacket.__name__ == "_local_scalar_dense"
        return func(*args, **(kwargs or {}))


def test_what_is_said_costs_no_read_of_the_device(pipe, arguments, monkeypatch):
    counts = []

    def after_step(pipe, step, timestep, tensors):
        counts.append(reads.count)
        return {}

    def announce(report, **options):
        before = reads.count
        said(report, **options)
        assert reads.count == before

    said = spotedit.api.announce
    monkeypatch.setattr(spotedit.api, "announce", announce)
    size = {"height": 48, "width": 64, "max_area": 48 * 64}
    with Reads(monkeypatch) as reads:
        pipe(**arguments(callback_on_step_end=after_step, **size))
        stock, counts = np.diff(counts), []
        with spotedit.enable(pipe, judge="l2", threshold=1e9, judge_every=1) as handle:
            pipe(**arguments(callback_on_step_end=after_step, **size))
    following = [step["kind"] for step in handle.report.steps[2:]] + ["end"]
    assert handle.report.unedited == 1
    # one read a judgement: before every spot step
    assert (np.diff(counts) - stock).tolist() == [kind == "spot" for kind in following]


@pytest.mark.parametrize(("threshold", "status"), [("1000", 3), ("0", 0)])
def test_the_exit_status_of_an_edit_that_changed_nothing(
    tmp_path, capsys, caplog, threshold, status
):
    caplog.set_level(logging.INFO, logger="spotedit")  # `main` sets its own
    Image.new("RGB", (128, 128), "teal").save(tmp_path / "in.png")
    given = ["edit", str(tmp_path / "in.png"), "paint it", "--model", "tiny", "--steps", "2"]
    given += ["--threshold", threshold, "-o", str(tmp_path / "out.png")]
    assert main([*given, "--fail-if-unchanged"]) == status
    assert (tmp_path / "out.png").exists()
    assert main([*given, "--force"]) == 0
    printed = capsys.readouterr()
    assert printed.out.count(UNEDITED) == (2 if status else 0)
    assert printed.err.count("nothing was edited") == (1 if status else 0)
    assert [record for record in caplog.records if record.name == "spotedit"] == []
