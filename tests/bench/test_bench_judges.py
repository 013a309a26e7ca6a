"""Test `bench.judges` and `bench.recovery` on made-up scores."""

import numpy as np
import pytest
import torch

from bench import judges, recovery
from bench.judges import Course
from spotedit.judge.judges import JUDGES
from spotedit.options.config import THRESHOLDS

STEPS, GRID = 8, (4, 5)


def course(strength: float) -> Course:
    """Make an edit that changed tokens 6 and 7, with scores of `strength` default thresholds."""
    changed = np.zeros(GRID, dtype=bool)
    changed.flat[[6, 7]] = True
    scores = torch.full((STEPS, 20), 0.01) + strength * torch.from_numpy(changed.ravel())
    return Course({judge: THRESHOLDS[judge] * scores for judge in JUDGES}, changed)


def test_recall_and_size_follow_the_threshold():
    courses = [course(2.0), course(0.5)]
    selection = judges.select(courses, "l2", THRESHOLDS["l2"])
    assert selection.recalls.tolist() == [1, 0]
    assert courses[0].needed == 12  # two tokens and a whole ring, as they do not touch the border
    half = judges.select(courses, "l2", 0.25 * THRESHOLDS["l2"])
    assert half.recalls.tolist() == [1, 1]
    assert half.size > selection.size
    assert half.ratio > selection.ratio


def test_thresholds_of_a_recall_and_of_a_size():
    threshold = judges.at_recall([course(2.0), course(0.5)], "cosine")
    assert 0.3 < threshold / THRESHOLDS["cosine"] <= 0.5
    threshold = judges.at_size([course(2.0)], "cosine", ratio=1.0)
    assert threshold < 0.011 * THRESHOLDS["cosine"]


def test_edits_are_saved_and_read_back(tmp_path):
    courses = [course(2.0), course(0.5)]
    judges.save_courses(courses, tmp_path / "a" / "edits.safetensors")
    loaded = judges.load_courses(tmp_path / "a" / "edits.safetensors")
    for one, other in zip(courses, loaded, strict=True):
        assert np.array_equal(one.changed, other.changed)
        assert one.scores.keys() == other.scores.keys()
        assert torch.equal(one.scores["l2"], other.scores["l2"])


def test_rows_of_thresholds_that_are_carried_from_one_editor_to_another():
    courses = {(editor, "easy"): [course(2.0)] for editor in ("kontext", "qwen", "world")}
    courses["world", "easy"] = [course(0.1)]
    rows = list(judges.result_rows(courses, STEPS))
    recalls = [
        row.value
        for row in rows
        if row.name == "recall"
        and row.parameters.get("threshold of") == "kontext"
        and row.parameters["editor"] == "world"
    ]
    assert recalls == [0] * len(JUDGES)
    assert {row.value for row in rows if row.name.startswith("AUC")} == {1.0}


def test_the_late_judge_finds_nothing_at_first():
    y = torch.zeros(1, 3, 4)
    score = recovery.late_judge(y, None, None, None)
    changed = torch.ones(1, 3, 4)
    assert score(changed).eq(0).all()
    assert score(changed).gt(1).all()


def test_recovery_counts_the_edits_that_are_mostly_missing():
    scenes = [dict.fromkeys(recovery.RESETS, share) for share in (0.2, 0.9)]
    rows = list(recovery.result_rows(scenes, np.linspace(1, 0, 29).tolist()))
    undone = [row.value for row in rows if row.name.startswith("edits of which")]
    assert undone == pytest.approx([0.5] * len(recovery.RESETS))
