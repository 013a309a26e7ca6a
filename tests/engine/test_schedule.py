"""Which steps of a call are full steps."""

import pytest

from spotedit.engine.schedule import plan, with_verification


def full_steps(kinds: list[str]) -> list[int]:
    return [index for index, kind in enumerate(kinds) if kind == "full"]


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        (50, [0, 1, 2, 3, 13, 22, 31]),  # the published schedule
        (28, [0, 1, 7, 12, 17]),
        (12, [0, 4, 8]),
        (8, [0, 3, 5]),
        (6, [0, 4]),
        (4, [0, 2]),
        (3, [0]),
        (2, [0]),
        (1, [0]),
    ],
)
def test_the_schedule_scales_with_the_number_of_steps(steps, expected):
    assert full_steps(plan(steps)) == expected


def test_options_override_the_initial_steps_and_the_resets():
    assert full_steps(plan(20, initial_steps=3, reset_steps=(9,))) == [0, 1, 2, 9]
    assert full_steps(plan(20, reset_every=4)) == [0, 1, 5, 9, 13, 17]
    assert full_steps(plan(20, reset_steps=())) == [0, 1]


def test_a_reset_on_the_last_step_is_dropped():
    assert full_steps(plan(20, reset_steps=(10, 19))) == [0, 1, 10]


def test_every_step_is_full_if_there_are_no_more_than_initial_steps():
    assert plan(3, initial_steps=5) == ["full"] * 3


def test_a_model_may_place_its_resets_by_fractions_of_the_steps():
    assert full_steps(plan(28, fractions=(0.5, 0.9))) == [0, 1, 14, 25]
    assert full_steps(plan(28, reset_every=8, fractions=(0.5,))) == [0, 1, 9, 17, 25]


SIGMAS = [1.0, 0.9, 0.7, 0.5, 0.3, 0.1]
KINDS = ["full", "spot", "spot", "spot", "spot", "spot"]


def test_the_last_check_comes_in_the_last_step_with_a_sigma_that_still_allows_an_edit():
    assert full_steps(with_verification(KINDS, SIGMAS)) == [0, 3]


def test_the_last_check_is_not_the_last_step():
    assert full_steps(with_verification(KINDS[:3], SIGMAS[:3])) == [0, 1]


def test_there_is_no_last_check_if_all_sigmas_are_too_low():
    low_sigmas = [sigma / 4 for sigma in SIGMAS]
    assert full_steps(with_verification(KINDS, low_sigmas)) == [0]
