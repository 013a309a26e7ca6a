import math

import pytest
import torch

from spotedit.judge.judges import (
    CUT_MULTIPLE,
    LATENT_CUTS,
    PERCEPTUAL_CUTS,
    Calibrated,
    Prediction,
    cosine,
    divide_by_cut,
    l2,
    make_judge,
    perceptual,
)
from spotedit.judge.select import NotFiniteError, SpotSelector

GRID = (3, 5)
CHANNELS = 4


def tokens(*positions: int) -> torch.Tensor:
    """Return a mask [1, 15] that is True at these tokens."""
    active = torch.zeros(1, 15, dtype=torch.bool)
    active[0, list(positions)] = True
    return active


def select(
    scores=None, previous=None, x0=None, mask=None, mode="intersect", threshold=0.5, **settings
):
    """Return the selection of a selector with a judge that returns `scores`.

    Without `scores` there is no judge.
    """
    judge = None if scores is None else lambda prediction, fresh: scores.float()
    settings = {"dilation": 0, "hysteresis": 0.0, "impl": "reference", **settings}
    selector = SpotSelector(judge, threshold, grid=GRID, allowed=mask, mode=mode, **settings)
    batch = len(mask if scores is None else scores)
    x0 = torch.zeros(batch, 15, CHANNELS) if x0 is None else x0
    return selector(Prediction(x0), previous, fresh=previous is None)


def test_the_indices_of_a_selection():
    first = select(tokens(1, 2, 4, 9))
    assert torch.equal(first.active_mask, tokens(1, 2, 4, 9))
    assert first.active_index.tolist() == [1, 2, 4, 9]
    assert first.reused_index.tolist() == [i for i in range(15) if i not in (1, 2, 4, 9)]
    assert first.dropped_index.tolist() == []
    second = select(tokens(1, 4), first)
    assert second.dropped_index.tolist() == [2, 9]
    assert second.reused_index.tolist() == [i for i in range(15) if i not in (1, 4)]
    for index in (second.active_index, second.reused_index, second.dropped_index):
        assert index.dtype == torch.int64


def test_every_image_of_a_batch_has_its_own_indices():
    first = select(torch.cat([tokens(1, 2), tokens(4, 9)]))
    second = select(torch.cat([tokens(1, 4), tokens(4)]), first)
    assert torch.equal(second.active_mask, torch.cat([tokens(1), tokens(4)]))
    assert second.active_index.tolist() == [[1], [4]]
    assert second.dropped_index.tolist() == [[2], [9]]
    for reused, active in zip(second.reused_index.tolist(), (1, 4), strict=True):
        assert reused == [i for i in range(15) if i != active]
    padded = select(torch.cat([tokens(1, 2, 9), tokens()]), pad_to=4)
    assert padded.active_index.tolist() == [[1, 2, 9, -1], [-1] * 4]
    assert padded.reused_index[0].tolist()[-4:] == [14, -1, -1, -1]
    assert (first.num_empty, second.num_empty, padded.num_empty) == (0, 0, 1)


@pytest.mark.parametrize("count", [0, 15])
def test_no_and_all_tokens(count):
    everything = torch.ones(1, 15, dtype=torch.bool)
    selection = select(everything & (torch.arange(15) < count), select(everything))
    assert selection.active_index.tolist() == list(range(count))
    assert (
        selection.reused_index.tolist()
        == selection.dropped_index.tolist()
        == list(range(count, 15))
    )


def test_between_resets_a_reused_token_stays_reused():
    assert select(tokens(3, 7), select(tokens(7, 8))).active_index.tolist() == [7]
    assert select(tokens(3, 7)).active_index.tolist() == [3, 7]


def test_dilation_and_mask():
    mask = tokens(6, 7)
    assert torch.equal(select(tokens(5), dilation=1).active_mask, tokens(0, 1, 5, 6, 10, 11))
    assert torch.equal(select(tokens(7), mask=mask, dilation=1).active_mask, mask)
    assert torch.equal(select(tokens(0), mask=mask, mode="union").active_mask, tokens(0, 6, 7))


def test_a_mask_that_replaces_the_judgement_needs_no_judge():
    mask = torch.cat([tokens(6, 7), tokens(8)])
    selection = select(mask=mask, mode="replace", dilation=1)
    assert torch.equal(selection.active_mask, mask)
    assert selection.active_index.tolist() == [[6, 7], [8, -1]]
    half = select(mask=mask, mode="replace", x0=torch.ones(2, 15, 4).half())
    assert torch.equal(half.active_index, selection.active_index)


def test_a_neighbour_that_hardly_changed_does_not_join():
    scores = torch.zeros(1, 15)
    scores[0, 7], scores[0, 6], scores[0, 12] = 0.9, 0.2, 0.05
    assert select(scores, dilation=1).active_mask.sum() == 9
    assert torch.equal(select(scores, dilation=1, hysteresis=0.25).active_mask, tokens(6, 7))


def test_a_fresh_judgement_counts_the_reactivated_tokens():
    selector = SpotSelector(
        lambda prediction, fresh: prediction.x0[..., 0], 0.5, 0, 0.0, GRID, None, "intersect",
        "reference",
    )  # fmt: skip

    def judged(changed, previous, fresh):
        return selector(Prediction(changed[..., None].float()), previous, fresh)

    first = judged(tokens(3, 4), None, True)
    between = judged(tokens(4, 9), first, False)
    reset = judged(tokens(4, 9, 10), between, True)
    assert [s.num_active for s in (first, between, reset)] == [2, 1, 3]
    assert [s.num_reactivated for s in (first, between, reset)] == [0, 0, 2]
    assert reset.dropped_index.tolist() == []


def test_without_a_threshold_the_scores_are_split_into_two_groups():
    scores = 0.01 * torch.rand(1, 15) + 0.1 * tokens(3, 4, 8)
    assert select(scores, threshold=None).active_index.tolist() == [3, 4, 8]
    assert select(torch.linspace(0, 1, 15)[None], threshold=None).active_mask.all()


def test_values_that_are_not_finite():
    for value in (math.nan, math.inf):
        x0 = torch.zeros(1, 15, 4)
        x0[0, 3, 1] = value
        with pytest.raises(NotFiniteError):
            select(tokens(1), x0=x0)


def test_an_unknown_implementation_is_refused():
    with pytest.raises(ValueError, match="impl must be one of"):
        select(tokens(1), impl="cuda")


# -- judges


def source(batch=1):
    return torch.randn(batch, 15, CHANNELS, generator=torch.Generator().manual_seed(0))


def features(x):
    """Return two feature maps of the tokens."""
    grid = x.unflatten(1, GRID).permute(0, 3, 1, 2)
    return [grid, grid.square()]


def test_judges_compare_the_clean_image_that_the_velocity_predicts():
    y, velocity = source(2), torch.randn(2, 15, CHANNELS)
    clean = y.clone()
    clean[0, 3] += 1
    prediction = Prediction(clean + 0.7 * velocity, velocity, 0.7)
    assert torch.allclose(prediction.x0, clean, atol=1e-6)
    for make in (perceptual, cosine, l2):
        scores = make(y, GRID, features, "reference")(prediction)
        assert scores.shape == (2, 15)
        assert scores.argmax() == 3
        assert scores[1].max() < 1e-5, make.__name__


def test_a_calibrated_cut_follows_the_picture_between_its_bounds():
    low, high = LATENT_CUTS
    quiet, middle, loud = (torch.full((1, 15), value) for value in (0.0, low / 10, high))
    for distances, cut in ((quiet, low), (middle, CUT_MULTIPLE * low / 10), (loud, high)):
        distances[0, 4] = 1.0
        assert divide_by_cut(distances, LATENT_CUTS)[0, 4] == pytest.approx(1 / cut)
    both = torch.cat([quiet, middle])  # every image has a cut of its own
    assert torch.equal(divide_by_cut(both, LATENT_CUTS)[:1], divide_by_cut(quiet, LATENT_CUTS))


def test_a_token_is_reused_only_if_both_distances_call_it_unchanged():
    y = source()
    brighter, faint = y.clone(), 0.05 * y
    # the perceptual distance compares directions alone, and this one stays the same
    brighter[0, 3] *= 2
    # this direction changes, but too little for the latent distance
    faint[0, 5] = faint[0, 5].roll(1)
    y = torch.cat([y, 0.05 * y])
    changed = Prediction(torch.cat([brighter, faint]))

    def directions(x):
        return features(x)[:1]

    latent = divide_by_cut(l2(y, GRID, directions, "reference")(changed), LATENT_CUTS)
    perceived = divide_by_cut(
        perceptual(y, GRID, directions, "reference")(changed), PERCEPTUAL_CUTS
    )
    both = Calibrated(y, GRID, directions, "reference")(changed)
    assert latent[0, 3] > 1 > perceived[0, 3]
    assert perceived[1, 5] > 1 > latent[1, 5]
    assert both[0, 3] == latent[0, 3]
    assert both[1, 5] == perceived[1, 5]
    assert both.gt(1).sum() == 2  # resizing spreads features to the neighbours, which do not count


def test_features_that_a_distant_edit_changed_do_not_count():
    """The features change everywhere, as if the decoder normalised a picture with a flat ground."""
    y = source()
    changed = y.clone()
    changed[0, 3] = y[0, 3].roll(1)

    def changed_everywhere(x):
        return [features(x - x.mean(dim=1, keepdim=True) + 9 * (x - y).abs().mean())[0]]

    prediction = Prediction(changed)
    distances = perceptual(y, GRID, changed_everywhere, "reference")(prediction)
    assert distances.min() > PERCEPTUAL_CUTS[0]
    scores = Calibrated(y, GRID, changed_everywhere, "reference")(prediction)
    assert scores.gt(1).nonzero().tolist() == [[0, 3]]


def test_decoder_features_are_only_computed_at_fresh_judgements():
    calls = []

    def counted(x):
        calls.append(x)
        return features(x)

    y = source()
    judge = Calibrated(y, GRID, counted, "reference")
    changed = y.clone()
    changed[0, 3] = y[0, 3].roll(1)
    first = judge(Prediction(changed), True)
    second = judge(Prediction(y + 0.1), False)
    assert len(calls) == 2  # for the source and for the first prediction
    assert first[0, 3] > 1
    assert second[0, 3] > 1  # the perceptual distance of the first judgement still counts
    assert judge(Prediction(y.clone()), False)[0, 3] == 0  # it does not count for a still token
    assert judge(Prediction(y.clone()), True)[0, 3] == 0
    assert len(calls) == 3


def test_a_custom_judge_gets_clean_tokens_and_returns_one_score_each():
    received = []

    def largest(y, grid, features, impl):
        def score(x0):
            received.append((x0.dtype, grid, impl, len(features(x0))))
            return (x0 - y.float()).abs().amax(-1)

        return score

    y = source().bfloat16()
    score = make_judge(largest, y, GRID, features, "reference")
    assert torch.equal(score(Prediction(y)), torch.zeros(1, 15))
    assert received == [(torch.float32, GRID, "reference", 2)]
    for wrong, actual in ((torch.zeros(15), r"\[15\]"), (None, "NoneType")):
        score = make_judge(lambda *_, wrong=wrong: lambda x0: wrong, y, GRID, features, "auto")
        with pytest.raises(
            ValueError, match=f"scoring function returned {actual}; expected one score"
        ):
            score(Prediction(y))
