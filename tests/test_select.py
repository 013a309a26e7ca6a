import numpy as np
import PIL.Image
import pytest
import torch

from spotedit.mask import as_mask, token_mask
from spotedit.select import NotFiniteError, active_set, compact, dilate

GRID = (3, 5)


def tokens(*positions: int) -> torch.Tensor:
    active = torch.zeros(1, 15, dtype=torch.bool)
    active[0, list(positions)] = True
    return active


def scores(*positions: int) -> torch.Tensor:
    return tokens(*positions).float()


def test_threshold_is_inclusive_for_reuse():
    active = active_set(torch.tensor([[0.1, 0.2, 0.3]]), 0.2, (1, 3))
    assert active.tolist() == [[False, False, True]]


def test_between_resets_a_reused_token_stays_reused():
    active = active_set(scores(3, 7), 0.5, GRID, previous=tokens(7, 8))
    assert torch.equal(active, tokens(7))


def test_dilation_grows_the_active_set_and_not_across_rows():
    assert torch.equal(dilate(tokens(5), GRID, 1), tokens(0, 1, 5, 6, 10, 11))
    assert torch.equal(dilate(tokens(4), GRID, 1), tokens(3, 4, 8, 9))
    assert torch.equal(dilate(tokens(), GRID, 2), tokens())


def test_a_mask_is_not_dilated():
    mask = tokens(6, 7)
    assert torch.equal(active_set(scores(7), 0.5, GRID, dilation=1, mask=mask), mask)
    assert torch.equal(active_set(scores(0), 0.5, GRID, mask=mask, mode="union"), tokens(0, 6, 7))
    assert torch.equal(active_set(None, 0.5, GRID, mask=mask, mode="replace"), mask)


def test_compact_orders_active_then_newly_reused_then_reused():
    rows = torch.cat([tokens(1), tokens(4, 1)])
    selection = compact(rows, tokens(1, 2, 4, 9)[0], torch.tensor(True))
    assert selection.active.tolist() == [1, 4]
    assert selection.dropped.tolist() == [2, 9]
    assert selection.reused[:2].tolist() == [2, 9]
    assert sorted([*selection.reused.tolist(), 1, 4]) == list(range(15))


def test_compact_reports_values_that_are_not_finite():
    with pytest.raises(NotFiniteError):
        compact(tokens(1), tokens(1)[0], torch.tensor(False))


@pytest.mark.parametrize("count", [0, 15])
def test_compact_with_no_and_all_tokens(count):
    active = (torch.arange(15) < count)[None]
    selection = compact(active, torch.ones(15, dtype=torch.bool), torch.tensor(True))
    assert selection.active.tolist() == list(range(count))
    assert selection.reused.tolist() == selection.dropped.tolist() == list(range(count, 15))


def test_masks_of_every_kind_mean_the_same():
    picture = np.zeros((6, 10), np.uint8)
    picture[2:4, 4:6] = 255
    for mask in (
        picture,
        picture // 255,
        picture > 0,
        torch.from_numpy(picture / 255.0),
        PIL.Image.fromarray(picture),
    ):
        assert torch.equal(token_mask(as_mask(mask), GRID, 2, [(6, 10)]), tokens(7).expand(2, -1))


def test_one_white_pixel_frees_its_token():
    mask = torch.zeros(6, 10)
    mask[3, 5] = 1
    assert torch.equal(token_mask(as_mask(mask), GRID, 1, [(6, 10)]), tokens(7))


@pytest.mark.parametrize(
    ("mask", "error", "words"),
    [
        ("white", TypeError, "expected a PIL image"),
        (np.zeros(4), ValueError, r"expected \[H, W\]"),
        (np.zeros((0, 4)), ValueError, "shape"),
        (np.full((6, 10), np.nan), ValueError, "not finite"),
    ],
)
def test_what_is_no_mask(mask, error, words):
    with pytest.raises(error, match=words):
        as_mask(mask)


def test_masks_of_the_wrong_size_or_batch():
    with pytest.raises(ValueError, match=r"7 x 10.*expected.*6 x 10, 3 x 5"):
        token_mask(as_mask(np.zeros((7, 10))), GRID, 1, [(6, 10)])
    with pytest.raises(ValueError, match="3 rows; expected 1 or one for each of the 2"):
        token_mask(as_mask(np.zeros((3, 6, 10))), GRID, 2, [(6, 10)])
