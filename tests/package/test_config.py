"""The configuration: what it refuses, its presets, and how overrides apply to it."""

import math
from dataclasses import replace
from typing import get_type_hints

import pytest
from spotedit_kernels import impl

import spotedit
from spotedit.engine.fusion import weights
from spotedit.judge.judges import JUDGES
from spotedit.options.choices import PUBLISHED_RESETS, Impl
from spotedit.options.config import THRESHOLDS, Overrides, Settings, resolve


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("preset", "slow"),
        ("judge", "eyes"),
        ("threshold", -0.1),
        ("threshold", math.nan),
        ("threshold", "0.2"),
        ("threshold", True),
        ("dilation", -1),
        ("dilation", 1.5),
        ("hysteresis", -0.1),
        ("hysteresis", 1.5),
        ("hysteresis", True),
        ("initial_steps", 0),
        ("reset_every", 0),
        ("judge_every", 0),
        ("reset_steps", (3, -1)),
        ("reset_steps", 7),
        ("fusion", "linear"),
        ("verify_last", 1),
        ("condition_cache", 1),
        ("match_size", None),
        ("on_misaligned", "stop"),
        ("impl", "cuda"),
    ],
)
def test_the_error_for_a_value_out_of_range_names_field_value_and_what_was_expected(field, value):
    with pytest.raises(ValueError, match=rf"SpotEditConfig\.{field} is .*; expected"):
        spotedit.SpotEditConfig(**{field: value})


def test_reset_steps_and_reset_every_exclude_each_other():
    with pytest.raises(ValueError, match="exclude"):
        spotedit.SpotEditConfig(reset_steps=[3], reset_every=4)


def test_overrides_apply_to_a_given_configuration():
    config = resolve(spotedit.SpotEditConfig(threshold=0.3, dilation=2), {"dilation": 0})
    assert (config.threshold, config.dilation) == (0.3, 0)


def test_an_unknown_override_is_refused():
    with pytest.raises(TypeError, match="unknown option treshold"):
        resolve(None, {"treshold": 0.1})


def test_a_configuration_of_another_type_is_refused():
    with pytest.raises(TypeError, match="expected a SpotEditConfig"):
        resolve({"threshold": 0.1}, {})


def test_a_preset_chooses_the_fields_that_are_not_given():
    default = spotedit.SpotEditConfig().settings
    assert (default.judge, default.threshold, default.dilation) == ("calibrated", 1.0, 1)
    paper = spotedit.SpotEditConfig("paper").settings
    assert paper == Settings("perceptual", 0.2, 0, 0.0, 1, PUBLISHED_RESETS, None)
    fast = spotedit.SpotEditConfig("fast", dilation=0, threshold=0.5).settings
    assert fast == replace(default, dilation=0, threshold=0.5, temporal=spotedit.TaylorSeer())
    tea = spotedit.TeaCache()
    assert spotedit.SpotEditConfig("fast", temporal=tea).settings.temporal is tea


@pytest.mark.parametrize("judge", JUDGES)
def test_every_judge_has_a_default_threshold(judge):
    assert spotedit.SpotEditConfig(judge=judge).settings.threshold == THRESHOLDS[judge]
    assert spotedit.SpotEditConfig(judge=judge, threshold=0.7).settings.threshold == 0.7


def test_a_judge_of_your_own_needs_a_threshold():
    def largest_difference(y, grid, features, impl):
        return lambda x0: (x0 - y).abs().amax(-1)

    with pytest.raises(ValueError, match=r"threshold is None; expected a number or 'auto' beside"):
        spotedit.SpotEditConfig(judge=largest_difference)
    settings = spotedit.SpotEditConfig(judge=largest_difference, threshold=0.5).settings
    assert (settings.judge, settings.threshold) == (largest_difference, 0.5)


def test_the_options_have_the_implementations_of_the_kernels():
    assert Impl == impl.Impl


def test_overrides_are_the_fields_of_the_configuration():
    assert get_type_hints(Overrides) == get_type_hints(spotedit.SpotEditConfig)
    assert Overrides.__total__ is False


def test_cosine_fusion_runs_from_the_cache_to_the_condition():
    assert weights("cosine", [1.0, 0.5, 0.0]) == pytest.approx([1.0, 0.5, 0.0])


def test_a_callable_fusion_must_return_weights():
    assert weights(lambda sigma: sigma, [0.25]) == [0.25]
    with pytest.raises(ValueError, match=r"fusion\(sigma=0.2500\) returned 1.5"):
        weights(lambda sigma: 1.5, [0.25])
