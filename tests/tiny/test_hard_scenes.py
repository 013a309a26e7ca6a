"""Test the hard scenes of `bench.quality`."""

import numpy as np
import pytest

from bench.hard_scenes import _KINDS, CASES, VISIBLE, hard_scene
from spotedit.tiny.scenes import KINDS


def test_scenes_are_deterministic_and_have_every_case_and_kind():
    scenes = [hard_scene(seed) for seed in range(9)]
    assert [scene.case for scene in scenes] == [*CASES] * 3
    again = hard_scene(4)
    assert np.array_equal(again.source, scenes[4].source)
    assert again.instruction == scenes[4].instruction
    for case in CASES:
        kinds = {hard_scene(seed).kind for seed in range(18) if CASES[seed % 3] == case}
        assert kinds == set(_KINDS[case]) <= set(KINDS)


@pytest.mark.parametrize("seed", range(12))
def test_the_mask_has_the_pixels_that_visibly_change(seed):
    scene = hard_scene(seed)
    difference = np.abs(scene.source.astype(int) - scene.target).max(axis=-1)
    assert np.array_equal(scene.mask, difference >= VISIBLE)
    assert 0 < scene.mask.mean() < 0.25


def test_near_colours_differ_little_and_small_objects_are_small():
    def difference(scene):
        return np.abs(scene.source[scene.mask].astype(int) - scene.target[scene.mask]).mean()

    near_colours = [difference(hard_scene(seed)) for seed in range(0, 36, 3)]
    small_areas = [hard_scene(seed).mask.mean() for seed in range(1, 36, 3)]
    assert np.median(near_colours) < 60
    assert max(small_areas) < 0.02
