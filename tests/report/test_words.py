"""A call tells surprises in a log record, its summary and the exit status of `spotedit edit`."""

import itertools
import logging
from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image
from small_kontext import GRID, STOCK_SIZE
from torch.utils._python_dispatch import TorchDispatchMode

import spotedit
from spotedit.cli import main
from spotedit.judge.misalignment import Misalignment

OTHER_SIZE = {"height": 48, "width": 48, "max_area": 48 * 48}  # the source is 48 x 64
EMPTY_MASK = np.zeros(GRID)
LEFT_HALF = np.arange(GRID[1]) < np.full(GRID, GRID[1] // 2)
HUGE = 1e9  # a threshold above every score: no token is judged to change
SHIFT = Misalignment("shift", (8.0, 8.0), 1.0, 1.0)
UNEDITED = "no token was judged to change: the picture is the source"


@pytest.fixture
def call(pipe, arguments, caplog) -> Callable[..., tuple]:
    """Return a function that calls the enabled pipeline, and returns report and log records.

    A record is (level, message). By default every token is judged to change.
    """
    caplog.set_level(logging.INFO, logger="spotedit")

    def call(extra=None, mask=None, mode="intersect", **options):
        with spotedit.enable(pipe, **{"judge": "l2", "threshold": 0.0, **options}) as handle:
            handle.set_mask(mask, mode)
            pipe(**arguments(**extra or {}))
        return handle.report, [
            (record.levelname, record.getMessage()) for record in spotedit_records(caplog)
        ]

    return call


def spotedit_records(caplog):
    return [record for record in caplog.records if record.name == "spotedit"]


@pytest.mark.parametrize(
    ("extra", "options", "level", "words"),
    [
        (
            OTHER_SIZE,
            {},
            "WARNING",
            "nothing was skipped: the output's token grid, 6 x 6, differs",
        ),
        (
            {"image": None, **OTHER_SIZE},
            {},
            "WARNING",
            "nothing was skipped: the call has no condition image",
        ),
        ({"num_inference_steps": 1}, {}, "WARNING", "nothing was skipped: too few steps"),
        ({}, {"spatial": False}, "INFO", "nothing was skipped: no token may be reused"),
        ({}, {"threshold": HUGE}, "WARNING", UNEDITED),
        ({"batch": 2}, {"threshold": HUGE}, "WARNING", "to change in 2 of 2 images: there"),
        (
            {},
            {"mask": EMPTY_MASK, "mode": "replace"},
            "WARNING",
            "the mask keeps every token, so",
        ),
        (
            {"batch": 2},
            {"mask": np.stack([LEFT_HALF, EMPTY_MASK])},
            "WARNING",
            "no token was judged to change in 1 of 2 images: there the picture is the source",
        ),
    ],
)
def test_a_call_with_a_surprise_logs_one_record(call, extra, options, level, words):
    report, [(logged_level, message)] = call(extra, **options)
    assert logged_level == level
    assert message.startswith("FluxKontextPipeline: ")
    assert words in message
    if report.batch == 1:
        assert message.removeprefix("FluxKontextPipeline: ") in report.summary().splitlines()


@pytest.mark.parametrize(
    ("on_misaligned", "words"),
    [("cache", "only the condition is cached"), ("dense", "the remaining steps ran dense")],
)
def test_a_frame_that_moved_logs_one_warning(call, monkeypatch, on_misaligned, words):
    monkeypatch.setattr("spotedit.judge.judging.detect", lambda *args: SHIFT)
    report, [(level, message)] = call(on_misaligned=on_misaligned)
    assert level == "WARNING"
    assert "the whole frame does not match the source" in message
    assert words in message
    assert report.unedited == 0


def test_an_edit_as_expected_logs_nothing(call):
    for options in ({}, {"mask": LEFT_HALF, "mode": "replace"}):
        report, records = call(**options)
        assert records == []
        assert report.unedited == 0


@pytest.fixture
def report_of_judgements(call):
    """Return a function (number of a judgement -> whether it finds a change) -> the call's report.

    Every step is judged, and each judgement finds all tokens changed or none.
    """

    def report(finds_change):
        def judge(y, grid, features, impl):
            numbers = itertools.count()

            def score(x0):
                changed = finds_change(next(numbers))
                return torch.full(x0.shape[:2], float(changed))

            return score

        report, _ = call(
            judge=judge, threshold=0.5, judge_every=1, initial_steps=1, reset_steps=(3, 5)
        )
        return report

    return report


def test_a_picture_is_unedited_if_the_last_judgement_finds_no_change(report_of_judgements):
    report = report_of_judgements(lambda number: number == 0)
    assert 0 < report.mean_ratio < 1
    assert report.unedited == 1
    assert "the region shrank from 48 tokens to none: the picture is the" in report.summary()


def test_a_picture_is_edited_if_only_the_last_judgements_find_a_change(report_of_judgements):
    report = report_of_judgements(lambda number: number >= 3)
    assert 0 < report.mean_ratio < 1
    assert report.unedited == 0
    assert report.doubts[0].startswith("the full step 5 found that 48 tokens reused until")


def test_a_call_that_does_not_reach_its_end_is_not_called_unedited(call, caplog):
    def interrupt(pipe, step, timestep, tensors):
        pipe._interrupt = True
        return {}

    def fail(pipe, step, timestep, tensors):
        raise RuntimeError("no more")

    report, records = call({"callback_on_step_end": interrupt}, threshold=HUGE)
    assert report.unedited == 0
    assert records == []
    for options in ({"threshold": HUGE}, {"initial_steps": 8}):
        with pytest.raises(RuntimeError, match="no more"):
            call({"callback_on_step_end": fail}, **options)
    assert caplog.records == []


def test_a_preview_is_not_called_unedited(pipe, arguments, caplog):
    caplog.set_level(logging.INFO, logger="spotedit")
    preview_arguments = arguments()
    del preview_arguments["output_type"]
    preview = spotedit.enable(pipe, judge="l2", threshold=HUGE).preview(**preview_arguments)
    assert not preview.region.any()
    assert preview.report.unedited == 0
    assert caplog.records == []


def test_the_report_says_which_images_are_the_source(call):
    report, _ = call({"batch": 2}, mask=np.stack([LEFT_HALF, EMPTY_MASK]))
    assert report.unedited == report.to_dict()["unedited"] == 1
    assert [image.unedited for image in report.images] == [0, 1]
    assert "in 1 of 2 images (number 1): there the picture is the source" in report.summary()
    assert UNEDITED in report.images[1].summary()
    assert "no token was judged" not in report.images[0].summary()


class CountReads(TorchDispatchMode):
    """While this mode is active, `count` is how often the host has read values of a tensor."""

    def __init__(self, monkeypatch) -> None:
        super().__init__()
        self.count = 0
        # On a CPU these methods dispatch no operation, so the mode does not see them.
        for name in ("tolist", "cpu", "numpy"):
            monkeypatch.setattr(torch.Tensor, name, self._counted(getattr(torch.Tensor, name)))

    def _counted(self, method):
        def counted_method(*args, **kwargs):
            self.count += 1
            return method(*args, **kwargs)

        return counted_method

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket.__name__ == "_local_scalar_dense":
            self.count += 1
        return func(*args, **(kwargs or {}))


def test_what_a_call_tells_costs_no_read_of_the_device(pipe, arguments, monkeypatch):
    """The only reads are one per judgement, and a judgement comes before every spot step."""
    announce = spotedit.api.announce

    def announce_without_reads(report, **options):
        before = reads.count
        announce(report, **options)
        assert reads.count == before

    def reads_in_each_step():
        counts = []

        def record_count(pipe, step, timestep, tensors):
            counts.append(reads.count)
            return {}

        pipe(**arguments(callback_on_step_end=record_count, **STOCK_SIZE))
        return np.diff(counts)

    monkeypatch.setattr(spotedit.api, "announce", announce_without_reads)
    with CountReads(monkeypatch) as reads:
        in_stock_steps = reads_in_each_step()
        with spotedit.enable(pipe, judge="l2", threshold=HUGE, judge_every=1) as handle:
            in_our_steps = reads_in_each_step()
    assert handle.report.unedited == 1
    # The first difference is of step 1, which is judged if step 2 is a spot step.
    following_kinds = [step["kind"] for step in handle.report.steps[2:]] + ["none"]
    is_judged = [kind == "spot" for kind in following_kinds]
    assert (in_our_steps - in_stock_steps).tolist() == is_judged


@pytest.mark.parametrize(("threshold", "status"), [("1000", 3), ("0", 0)])
def test_the_exit_status_tells_whether_an_edit_changed_something(
    tmp_path, capsys, caplog, threshold, status
):
    caplog.set_level(logging.INFO, logger="spotedit")  # `main` sets a level of its own
    source, output = tmp_path / "in.png", tmp_path / "out.png"
    Image.new("RGB", (128, 128), "teal").save(source)
    command = ["edit", str(source), "paint it", "--model", "tiny", "--steps", "2"]
    command += ["--threshold", threshold, "-o", str(output)]
    assert main([*command, "--fail-if-unchanged"]) == status
    assert output.exists()
    assert main([*command, "--force"]) == 0
    unchanged = status != 0
    printed = capsys.readouterr()
    assert printed.out.count(UNEDITED) == (2 if unchanged else 0)  # of both runs
    assert printed.err.count("nothing was edited") == (1 if unchanged else 0)
    assert spotedit_records(caplog) == []
