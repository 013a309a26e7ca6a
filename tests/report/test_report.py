"""EditReport gives a call's figures, as numbers, text, JSON and pictures."""

import json
import re

import matplotlib
import numpy as np
import pytest
import torch
from PIL import Image

from spotedit.engine.record import CallRecord, StepRecord
from spotedit.report import EditReport

ROWS, COLS = 3, 4  # token grid
NUM_TOKENS = ROWS * COLS
NUM_PROMPT_TOKENS = 5
SEQUENCE = NUM_PROMPT_TOKENS + 2 * NUM_TOKENS  # prompt, noise and condition tokens


def record(index: int, kind: str, active: int | torch.Tensor, seconds: float = 0.5) -> StepRecord:
    """Make the record of a step that starts at `index` seconds."""
    largest = int(active.max()) if isinstance(active, torch.Tensor) else active
    return StepRecord(
        index=index,
        kind=kind,
        sigma=1 - index / 4,
        rows=NUM_PROMPT_TOKENS + largest if kind == "spot" else SEQUENCE,
        sequence=SEQUENCE,
        total=NUM_TOKENS,
        active=active,
        start=index * 1.0,
        end=index + seconds,
    )


def report(**changes) -> EditReport:
    """Make the report of a call of one full and two spot steps, with the changed fields."""
    region = torch.zeros(1, NUM_TOKENS, dtype=torch.bool)
    region[0, [5, 6]] = True
    fields = {
        "pipeline": "FluxKontextPipeline",
        "grid": (ROWS, COLS),
        "records": [
            record(0, "full", NUM_TOKENS),
            record(1, "spot", torch.tensor([6])),
            record(2, "spot", torch.tensor([3]), seconds=0.25),
        ],
        "region": region,
        "scores": torch.rand(1, NUM_TOKENS),
        "batch": 1,
        "cache_bytes": 3 * 2**20,
        "reason": None,
        "threshold": 0.2,
        "judge": "perceptual",
    }
    return EditReport(CallRecord(**fields | changes))


def dense_report(reason: str = "grids differ") -> EditReport:
    records = [record(0, "dense", NUM_TOKENS)]
    return report(records=records, region=None, scores=None, cache_bytes=0, reason=reason)


def test_steps_have_their_counts_and_seconds():
    assert report().steps == [
        {"index": 0, "kind": "full", "sigma": 1.0, "active": 12, "total": 12, "seconds": 0.5},
        {"index": 1, "kind": "spot", "sigma": 0.75, "active": 6, "total": 12, "seconds": 0.5},
        {"index": 2, "kind": "spot", "sigma": 0.5, "active": 3, "total": 12, "seconds": 0.25},
    ]


def test_totals_are_those_of_the_steps():
    assert report().mean_ratio == pytest.approx((6 / 12 + 3 / 12) / 2)  # of the spot steps
    query_rows = SEQUENCE + (NUM_PROMPT_TOKENS + 6) + (NUM_PROMPT_TOKENS + 3)
    assert report().flops_saved == pytest.approx(1 - query_rows / (3 * SEQUENCE))
    assert report().seconds == pytest.approx(2.25)  # from the first start to the last end


def test_region_and_scores_are_on_the_token_grid():
    region, scores = report().region, report().scores
    assert region.dtype == bool
    assert region.shape == scores.shape == (ROWS, COLS)
    assert np.argwhere(region).tolist() == [[1, 1], [1, 2]]


def test_a_dense_call_skipped_nothing():
    assert dense_report().mean_ratio == 1.0
    assert dense_report().flops_saved == 0.0
    assert dense_report().region is None


def test_a_call_that_ran_no_step_has_a_report():
    empty = report(grid=None, records=[], region=None, scores=None)
    assert (empty.steps, empty.seconds, empty.flops_saved, empty.mean_ratio) == ([], 0.0, 0.0, 1.0)
    assert "0 steps" in empty.summary()
    json.dumps(empty.to_dict())


def test_a_report_sums_the_batch_and_each_image_has_a_report():
    region = torch.zeros(2, NUM_TOKENS, dtype=torch.bool)
    region[0, 0] = region[1, 11] = True
    records = [record(0, "full", NUM_TOKENS), record(1, "spot", torch.tensor([2, 8]))]
    both = report(batch=2, records=records, region=region, scores=torch.rand(2, NUM_TOKENS))
    assert [(step["active"], step["total"]) for step in both.steps] == [(24, 24), (10, 24)]
    assert both.region.shape == (2, ROWS, COLS)
    assert [image.steps[1]["active"] for image in both.images] == [2, 8]
    assert [image.mean_ratio for image in both.images] == pytest.approx([2 / 12, 8 / 12])
    assert np.argwhere(both.images[1].region).tolist() == [[2, 3]]
    assert both.mean_ratio == pytest.approx(5 / 12)


def test_images_of_a_single_image_is_the_report_itself():
    single = report()
    assert single.images == (single,)


def test_device_values_are_read_once(monkeypatch):
    """The report stacks all counts to read them together, when one is first needed."""
    reads = []
    stack = torch.stack

    def counted_stack(tensors):
        reads.append(1)
        return stack(tensors)

    monkeypatch.setattr(torch, "stack", counted_stack)
    one = report()
    assert not reads
    for _ in range(3):
        one.summary()
        _ = one.steps
        _ = one.mean_ratio
    assert len(reads) == 1


def test_the_summary_gives_kinds_share_and_cache():
    text = report().summary()
    assert re.search(r"full +1 steps", text)
    assert re.search(r"spot +2 steps", text)
    assert "r = 37.5%" in text
    assert "3.0 MiB" in text
    assert "perceptual" in text


def test_the_summary_says_what_was_reused():
    assert "tokens with a perceptual score of at most 0.2 are reused" in report().summary()
    automatic = report(threshold="auto").summary()
    assert "tokens with a perceptual score below the picture's own threshold" in automatic


def test_the_summary_claims_no_speed_up():
    for text in (report().summary(), dense_report().summary()):
        assert not re.search(r"faster|speed|\dx", text)


def test_the_summary_says_why_nothing_was_skipped():
    assert "nothing was skipped: grids differ" in dense_report().summary()
    everything = report(records=[record(0, "full", NUM_TOKENS), record(1, "spot", NUM_TOKENS)])
    assert "every token was judged to change" in everything.summary()


def test_the_summary_says_from_which_step_on_nothing_was_skipped():
    records = [record(0, "full", NUM_TOKENS), record(1, "spot", 6), record(2, "dense", NUM_TOKENS)]
    text = report(records=records, reason="another call ran the transformer").summary()
    assert "from step 2 on, nothing was skipped: another call ran the transformer" in text
    assert "r = 50.0%" in text
    late = report(records=[records[0], records[2]], reason="another call ran the transformer")
    assert "\nnothing was skipped: another call" in late.summary()


def test_the_note_about_the_mask_is_in_summary_and_to_dict():
    noted = report(mask_note="the mask covers the whole picture")
    assert "\nthe mask covers the whole picture\n" in noted.summary()
    assert noted.to_dict()["mask_note"] == "the mask covers the whole picture"
    assert report().to_dict()["mask_note"] is None


NO_TOKENS = torch.zeros(1, NUM_TOKENS, dtype=torch.bool)


def test_an_ordinary_call_leaves_no_doubts():
    assert report().doubts == []


def test_a_region_that_vanished_is_a_doubt_and_says_what_to_try():
    vanished = report(unedited=1, region=NO_TOKENS, largest=7)
    assert vanished.doubts == [
        "the region shrank from 7 tokens to none: the picture is the source; a lower threshold, "
        "other words or a mask may help"
    ]
    assert_doubt_is_told(vanished)
    one_token = report(unedited=1, region=NO_TOKENS, largest=1)
    assert "shrank from 1 token to" in one_token.summary()


def test_tokens_found_changed_after_they_were_reused_are_a_doubt():
    returned = report(largest=6, returned=[(1, 2), (2, 4)])  # (step, number of tokens)
    assert returned.doubts[0].startswith("the full step 2 found that 4 tokens reused until")
    assert_doubt_is_told(returned)
    assert report(largest=6, returned=[(1, 2)]).doubts == []  # few of the largest region


def test_an_edit_that_ended_as_the_source_is_a_doubt():
    assert "ended as the source" in report(moved=NO_TOKENS).doubts[0]
    one_token = NO_TOKENS.clone()
    one_token[0, 5] = True
    assert report(moved=one_token).doubts == []


def assert_doubt_is_told(doubtful: EditReport) -> None:
    assert doubtful.doubts[0] in doubtful.summary()
    assert doubtful.to_dict()["doubts"] == doubtful.doubts


def test_to_dict_survives_json():
    for one in (report(), dense_report()):
        assert json.loads(json.dumps(one.to_dict())) == one.to_dict()
    assert report().to_dict()["region"] == [[0, 0, 0, 0], [0, 1, 1, 0], [0, 0, 0, 0]]


@pytest.mark.parametrize("size", [(40, 30), (37, 61), (4, 3)])
def test_an_overlay_changes_the_region_only(size):
    picture = Image.new("RGBA", size, "white")
    tinted = report().overlay(picture)
    assert (tinted.size, tinted.mode) == (size, "RGB")
    region = Image.fromarray(report().region).resize(size, Image.Resampling.NEAREST)
    changed = (np.asarray(tinted) != 255).any(axis=-1)
    assert np.array_equal(changed, np.asarray(region))


def test_an_overlay_outlines_the_region():
    tinted = np.asarray(report().overlay(Image.new("RGB", (400, 300), "white")))
    # A token is 100 x 100 pixels. The left one of the region begins at x = 100, y = 100.
    edge, inside = tinted[150, 101], tinted[150, 150]
    assert edge.tolist() != inside.tolist()


def test_an_overlay_without_a_region_is_refused_with_the_reason():
    with pytest.raises(ValueError, match="grids differ"):
        dense_report().overlay(Image.new("RGB", (8, 8)))


def test_an_overlay_of_a_batch_is_refused_and_its_images_recommended():
    region = torch.ones(2, NUM_TOKENS, dtype=torch.bool)
    records = [record(0, "full", NUM_TOKENS)]
    both = report(batch=2, records=records, region=region, scores=None)
    with pytest.raises(ValueError, match=r"images\[i\]"):
        both.overlay(Image.new("RGB", (8, 8)))
    both.images[1].overlay(Image.new("RGB", (8, 8)))


@pytest.mark.parametrize("name", ["steps.png", "steps.svg"])
def test_a_plot_writes_one_whole_file_and_keeps_the_backend(tmp_path, name):
    backend = matplotlib.get_backend()
    report().plot(tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).stat().st_size > 1000
    assert matplotlib.get_backend() == backend


def test_a_plot_of_no_steps_is_written_too(tmp_path):
    report(records=[]).plot(tmp_path / "steps.png")
    assert (tmp_path / "steps.png").exists()
