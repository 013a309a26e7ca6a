import math

import pytest
import torch

from spotedit.select import NotFiniteError, SpotSelector

GRID = (3, 5)


def tokens(*positions: int) -> torch.Tensor:
    active = torch.zeros(1, 15, dtype=torch.bool)
    active[0, list(positions)] = True
    return active


def select(
    scores=None, previous=None, x0=None, mask=None, mode="intersect", threshold=0.5, **settings
):
    """The selection of a selector whose judge finds `scores`."""
    judge = None if scores is None else lambda x0: scores.float()
    settings = {"dilation": 0, "impl": "reference", **settings}
    selector = SpotSelector(judge, threshold, grid=GRID, allowed=mask, mode=mode, **settings)
    batch = len(mask if scores is None else scores)
    return selector(torch.zeros(batch, 15, 4) if x0 is None else x0, previous)


def test_the_lists_of_a_selection():
    first = select(tokens(1, 2, 4, 9))
    assert torch.equal(first.rows, tokens(1, 2, 4, 9))
    assert first.active.tolist() == [1, 2, 4, 9]
    assert first.reused.tolist() == [i for i in range(15) if i not in (1, 2, 4, 9)]
    assert first.dropped.tolist() == []
    second = select(tokens(1, 4), first)
    assert second.dropped.tolist() == [2, 9]
    assert second.reused.tolist() == [i for i in range(15) if i not in (1, 4)]
    for index in (second.active, second.reused, second.dropped):
        assert index.dtype == torch.int64


def test_every_image_of_a_batch_has_lists_of_its_own():
    first = select(torch.cat([tokens(1, 2), tokens(4, 9)]))
    second = select(torch.cat([tokens(1, 4), tokens(4)]), first)
    assert torch.equal(second.rows, torch.cat([tokens(1), tokens(4)]))
    assert second.active.tolist() == [[1], [4]]
    assert second.dropped.tolist() == [[2], [9]]
    assert second.reused.tolist() == [[i for i in range(15) if i != own] for own in (1, 4)]
    padded = select(torch.cat([tokens(1, 2, 9), tokens()]), pad_to=4)
    assert padded.active.tolist() == [[1, 2, 9, -1], [-1] * 4]
    assert padded.reused[0].tolist()[-4:] == [14, -1, -1, -1]
    assert (first.num_empty, second.num_empty, padded.num_empty) == (0, 0, 1)


@pytest.mark.parametrize("count", [0, 15])
def test_no_and_all_tokens(count):
    everything = torch.ones(1, 15, dtype=torch.bool)
    selection = select(everything & (torch.arange(15) < count), select(everything))
    assert selection.active.tolist() == list(range(count))
    assert selection.reused.tolist() == selection.dropped.tolist() == list(range(count, 15))


def test_between_resets_a_reused_token_stays_reused():
    assert select(tokens(3, 7), select(tokens(7, 8))).active.tolist() == [7]
    assert select(tokens(3, 7)).active.tolist() == [3, 7]


def test_dilation_and_mask():
    mask = tokens(6, 7)
    assert torch.equal(select(tokens(5), dilation=1).rows, tokens(0, 1, 5, 6, 10, 11))
    assert torch.equal(select(tokens(7), mask=mask, dilation=1).rows, mask)
    assert torch.equal(select(tokens(0), mask=mask, mode="union").rows, tokens(0, 6, 7))


def test_a_mask_that_replaces_needs_no_judge():
    mask = torch.cat([tokens(6, 7), tokens(8)])
    selection = select(mask=mask, mode="replace", dilation=1)
    assert torch.equal(selection.rows, mask)
    assert selection.active.tolist() == [[6, 7], [8, -1]]
    half = select(mask=mask, mode="replace", x0=torch.ones(2, 15, 4).half())
    assert torch.equal(half.active, selection.active)


def test_without_a_threshold_the_scores_are_cut_where_they_separate():
    scores = 0.01 * torch.rand(1, 15) + 0.1 * tokens(3, 4, 8)
    assert select(scores, threshold=None).active.tolist() == [3, 4, 8]
    assert select(torch.linspace(0, 1, 15)[None], threshold=None).rows.all()


def test_values_that_are_not_finite():
    for value in (math.nan, math.inf):
        x0 = torch.zeros(1, 15, 4)
        x0[0, 3, 1] = value
        with pytest.raises(NotFiniteError):
            select(tokens(1), x0=x0)


def test_the_kernels_are_the_ones_asked_for():
    with pytest.raises(ValueError, match="impl must be one of"):
        select(tokens(1), impl="cuda")
