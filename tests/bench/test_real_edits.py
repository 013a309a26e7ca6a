"""The judge against the pixels, on results of published editors where they are installed."""

import numpy as np
import pytest

from bench import edits, metrics, real_edits
from bench.real_edits import ALIGNED, CHANGED, OTHERS

_QWEN = [name for name in ALIGNED if name.startswith("Qwen-Image-Edit")]
needs_pictures = pytest.mark.skipif(
    not real_edits.installed("image"), reason="the extra `real-edits` is not installed"
)
aligned = pytest.mark.parametrize("pair", [ALIGNED[name] for name in _QWEN], ids=_QWEN)


@pytest.fixture(scope="module")
def pipe():
    return edits.load()


def test_a_scene_is_judged_as_its_truth_says(pipe):
    scene = edits.heldout(1)
    judged = real_edits.judge(pipe, scene.target_image, scene.source_image)
    changed = metrics.changed_share(scene.mask, judged.active.shape) >= metrics.EDITED_SHARE
    assert metrics.auc(judged.difference, changed) > 0.97
    assert metrics.auc(judged.scores["perceptual"], changed) > 0.97
    assert judged.active[changed].all()
    assert not judged.active.all()


def test_a_shift_is_a_shift():
    scene = edits.heldout(1, size=64)
    moved, source = (
        np.asarray(p) for p in real_edits.shifted(scene.source_image, scene.source_image)
    )
    down, right = real_edits.SHIFT
    assert moved.shape == source.shape == (40, 40, 3)
    assert np.array_equal(moved[down:, :right], source[:-down, -right:])


@needs_pictures
@aligned
def test_the_score_finds_what_the_editor_changed(pipe, pair):
    judged = real_edits.judge(pipe, *real_edits.load_pair(*pair))
    changed = judged.difference > CHANGED[0]
    assert 0.02 < changed.mean() < 0.4
    assert metrics.auc(judged.scores["perceptual"], changed) > 0.98
    assert metrics.rank_correlation(judged.scores["perceptual"], judged.difference) > 0.5
    assert judged.active[changed].mean() > 0.97
    assert judged.active.mean() < changed.mean() + 0.2
    assert judged.misalignment is None


@needs_pictures
@aligned
def test_a_shift_of_the_frame_leaves_less_to_reuse(pipe, pair):
    loaded = real_edits.load_pair(*pair)
    there, moved = (
        real_edits.judge(pipe, *pictures) for pictures in (loaded, real_edits.shifted(*loaded))
    )
    assert moved.active.mean() > 1.5 * there.active.mean()
    # it is named only where it explains most of what differs, beside a small edit
    found = moved.misalignment
    assert (found is not None) == (pair == ALIGNED["Qwen-Image-Edit-2509"])
    if found is not None:
        assert found.kind == "shift"
        assert found.shift == pytest.approx(real_edits.SHIFT, abs=1)


@needs_pictures
@pytest.mark.parametrize("pair", OTHERS.values(), ids=OTHERS.keys())
def test_of_another_motif_only_the_backdrop_is_reused(pipe, pair):
    judged = real_edits.judge(pipe, *real_edits.load_pair(*pair))
    assert judged.active.mean() > 0.5
    assert judged.active[judged.difference > CHANGED[0]].mean() > 0.97
    assert judged.misalignment is None  # no shift or zoom turns one into the other
