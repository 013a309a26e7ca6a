import pytest

from spotedit.engine.schedule import plan, with_verification


def full_steps(kinds: list[str]) -> list[int]:
    return [i for i, kind in enumerate(kinds) if kind == "full"]


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
def test_schedule_scales_with_the_number_of_steps(steps, expected):
    assert full_steps(plan(steps)) == expected


def test_overrides():
    assert full_steps(plan(20, initial_steps=3, reset_steps=(9,))) == [0, 1, 2, 9]
    assert full_steps(plan(20, reset_every=4)) == [0, 1, 5, 9, 13, 17]
    assert full_steps(plan(20, reset_steps=())) == [0, 1]


def test_a_reset_on_the_last_step_is_dropped():
    assert full_steps(plan(20, reset_steps=(10, 19))) == [0, 1, 10]


def test_no_room_for_a_spot_step():
    assert plan(3, initial_steps=5) == ["full"] * 3


def test_a_model_may_have_resets_of_its_own():
    assert full_steps(plan(28, fractions=(0.5, 0.9))) == [0, 1, 14, 25]
    assert full_steps(plan(28, reset_every=8, fractions=(0.5,))) == [0, 1, 9, 17, 25]


def test_the_last_check_is_as_late_as_an_edit_can_still_be_made():
    sigmas = [1.0, 0.9, 0.7, 0.5, 0.3, 0.1]
    kinds = ["full", "spot", "spot", "spot", "spot", "spot"]
    assert full_steps(with_verification(kinds, sigmas)) == [0, 3]
    assert full_steps(with_verification(kinds[:3], sigmas[:3])) == [0, 1]  # not the last step
    assert full_steps(with_verification(kinds, [sigma / 4 for sigma in sigmas])) == [0]
