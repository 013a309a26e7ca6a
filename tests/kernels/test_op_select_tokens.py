"""Test select_tokens against a token-by-token oracle."""

import itertools
import math

import pytest
import torch
from kernel_oracle import EACH_IMPL, NoSync, seeded
from spotedit_kernels import select_tokens

from bench.shapes import ODD_GRIDS

GRID = (4, 6)


@pytest.fixture(autouse=True)
def poisoned_memory():
    """Fill uninitialised memory with True, the largest integer or NaN."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def two_means(scores):
    """Return the cut of a list of scores in fp64, and whether its clusters separate."""
    finite = [s for s in scores if math.isfinite(s)]
    if not finite:
        return 0.0, False
    cut, width = sum(finite) / len(finite), 0.0
    for _ in range(16):
        low, high = [s for s in finite if s <= cut], [s for s in finite if s > cut]
        if not low or not high:
            return cut, False
        means = sum(low) / len(low), sum(high) / len(high)
        cut, width = sum(means) / 2, (means[1] - means[0]) / 4
    low, high = (sum(s <= cut for s in finite), sum(s > cut for s in finite))
    near = sum(abs(s - cut) <= width for s in finite)
    return cut, min(low, high) > 0 and 3 * near <= min(low, high)


def exact(scores, grid, threshold=None, previous=None, dilation=0, hysteresis=0.0, mask=None,
          mode="intersect"):  # fmt: skip
    """Return the active set as lists of bool."""
    rows, cols = grid
    result = []
    for b, image in enumerate(scores.tolist()):
        cut, separate = two_means(image) if threshold is None else (threshold, True)
        judged = {
            divmod(i, cols)
            for i, s in enumerate(image)
            if (s > cut or not separate or not math.isfinite(s))
            and (previous is None or previous[b, i].item())
        }
        all_join = hysteresis == 0 or not separate
        joining = {
            divmod(i, cols)
            for i, s in enumerate(image)
            if all_join or s >= hysteresis * cut or not math.isfinite(s)
        }
        active = [
            any(
                (r + dr, c + dc) in judged and ((r, c) in joining or (dr, dc) == (0, 0))
                for dr, dc in itertools.product(range(-dilation, dilation + 1), repeat=2)
            )
            for r in range(rows)
            for c in range(cols)
        ]
        if mask is not None:
            allowed = mask[b].tolist()
            combine = {
                "replace": lambda a, m: m,
                "union": lambda a, m: a or m,
                "intersect": lambda a, m: a and m,
            }[mode]
            active = [combine(a, m) for a, m in zip(active, allowed, strict=True)]
        result.append(active)
    return result


def check(scores, grid, pad_to=1, impl="reference", **settings):
    """Compare the results with the oracle, and return the active set."""
    n = grid[0] * grid[1]
    active, index, count = select_tokens(scores, grid, pad_to=pad_to, impl=impl, **settings)
    want = exact(scores, grid, **settings)
    assert active.dtype == torch.bool
    assert active.tolist() == want
    length = math.ceil(n / pad_to) * pad_to
    assert index.dtype == count.dtype == torch.int32
    assert index.shape == (len(want), length)
    for image, row, real in zip(want, index.tolist(), count.tolist(), strict=True):
        tokens = [i for i in range(n) if image[i]]
        assert row == tokens + [-1] * (length - len(tokens))
        assert real == len(tokens)
    return active


def draw(grid, batch=2, seed=0, kind=torch.rand):
    return kind(batch, grid[0] * grid[1], generator=seeded(seed))


def two_groups(grid, batch=2, seed=0):
    """Return scores around 0.05, of which a third are raised to around 0.7."""
    changed = draw(grid, batch, seed) < 0.3
    changed[:, :2] = torch.tensor([True, False])
    noise = 0.1 * draw(grid, batch, seed + 1)
    return noise + 0.65 * changed


@EACH_IMPL
@pytest.mark.parametrize(
    ("grid", "pad_to"), [((1, 1), 1), *zip(ODD_GRIDS, (16, 7, 128, 64), strict=True)]
)
def test_threshold_and_padding(grid, pad_to, impl):
    check(draw(grid), grid, pad_to, impl, threshold=0.7)
    check(two_groups(grid) if grid != (1, 1) else draw(grid), grid, pad_to, impl)


@EACH_IMPL
def test_a_score_at_the_threshold_is_not_active(impl):
    scores = torch.tensor([[0.1, 0.2, 0.3]])
    active, _, _ = select_tokens(scores, (1, 3), threshold=0.2, impl=impl)
    assert active.tolist() == [[False, False, True]]


@EACH_IMPL
def test_more_tokens_than_a_block(impl):
    grid = (47, 53)
    for hysteresis in (0.0, 0.5):
        settings = {"threshold": 0.97, "dilation": 1, "hysteresis": hysteresis}
        check(draw(grid, 1), grid, 128, impl, **settings)
    active = check(two_groups(grid, 1), grid, impl=impl)
    assert 0.2 < active.float().mean() < 0.4


@EACH_IMPL
@pytest.mark.parametrize("dilation", [0, 1, 2])
def test_dilation_reaches_a_square_and_no_further(dilation, impl):
    scores = torch.zeros(2, 24)
    scores[0, 5] = scores[1, 13] = 1  # the right border, the middle
    check(scores, GRID, impl=impl, threshold=0.5, dilation=dilation)


@EACH_IMPL
def test_dilation_beyond_the_grid(impl):
    assert check(torch.eye(1, 6), (2, 3), impl=impl, threshold=0.5, dilation=20).all()


@EACH_IMPL
@pytest.mark.parametrize("hysteresis", [0.3, 0.5, 1.0])
@pytest.mark.parametrize("dilation", [0, 1, 2])
def test_hysteresis_lets_only_the_nearly_active_join(hysteresis, dilation, impl):
    settings = {"dilation": dilation, "hysteresis": hysteresis, "impl": impl}
    for grid in (GRID, (11, 13)):
        active = check(draw(grid), grid, threshold=0.8, **settings)
        assert (active >= (draw(grid) > 0.8)).all()  # no judged token is removed
    check(draw(GRID), GRID, threshold=0.8, previous=draw(GRID, seed=1) < 0.5, **settings)
    scores = two_groups(GRID)  # cut in each image at about 0.4
    check(scores, GRID, **settings | {"hysteresis": 0.2 * hysteresis})
    check(torch.stack((scores[0], 100 * scores[1])), GRID, **settings)


@EACH_IMPL
def test_who_joins_under_hysteresis(impl):
    settings = {"dilation": 1, "hysteresis": 0.5, "impl": impl}
    at_the_least = torch.tensor([[0.25, 1.0, 0.24]])
    assert check(at_the_least, (1, 3), threshold=0.5, **settings).tolist() == [[True, True, False]]
    unknown = torch.tensor([[1.0, math.nan, 0.0, -math.inf, 1.0]])
    previous = torch.tensor([[True, False, False, False, True]])
    active = check(unknown, (1, 5), threshold=0.5, previous=previous, **settings)
    assert active.tolist() == [[True, True, False, True, True]]
    negative = torch.tensor([[-0.8, -0.2, -3.0]])  # the least that joins, -0.5, is above the cut
    assert check(negative, (1, 3), threshold=-1.0, **settings).tolist() == [[True, True, False]]
    for threshold in (math.inf, -math.inf, 1e300):
        check(unknown, (1, 5), threshold=threshold, previous=previous, **settings)


@EACH_IMPL
def test_the_least_that_joins_is_rounded_to_fp32(impl):
    numbers = torch.rand(100, 2, generator=seeded(0), dtype=torch.float64)
    for threshold, hysteresis in numbers.tolist():
        least = torch.tensor(threshold, dtype=torch.float32) * torch.tensor(hysteresis).float()
        scores = torch.stack((least, torch.ones_like(least), least.nextafter(-least)))[None]
        settings = {"threshold": threshold, "dilation": 1, "hysteresis": hysteresis, "impl": impl}
        active, _, _ = select_tokens(scores, (1, 3), **settings)
        assert active.tolist() == [[True, True, False]]


@EACH_IMPL
@pytest.mark.parametrize("hysteresis", [0.0, 1e-60])  # 1e-60 is 0 in fp32
def test_without_hysteresis_every_neighbour_joins(hysteresis, impl):
    scores = torch.tensor([[-5.0, 1.0, 0.0]])
    settings = {"dilation": 1, "hysteresis": hysteresis, "impl": impl}
    assert select_tokens(scores, (1, 3), threshold=0.5, **settings)[0].all()
    same = torch.full((1, 3), 0.3)  # the cut does not hold: it is -inf
    previous = torch.tensor([[False, True, False]])
    assert select_tokens(same, (1, 3), previous=previous, **settings)[0].all()
    settings["hysteresis"] = 0.5
    assert check(same, (1, 3), previous=previous, **settings).all()


@EACH_IMPL
@pytest.mark.parametrize("hysteresis", [0.0, 0.6])
@pytest.mark.parametrize("mode", ["replace", "union", "intersect"])
def test_previous_and_mask(mode, hysteresis, impl):
    previous, mask = draw(GRID, seed=1) < 0.7, draw(GRID, seed=2) < 0.5
    settings = {"threshold": 0.8, "dilation": 1, "mode": mode, "impl": impl}
    settings["hysteresis"] = hysteresis
    check(draw(GRID), GRID, 16, previous=previous, mask=mask, **settings)
    check(draw(GRID), GRID, 16, mask=mask, **settings)
    check(draw(GRID), GRID, 16, previous=previous, **settings)


@EACH_IMPL
def test_a_mask_is_copied_never_returned(impl):
    mask = draw(GRID) < 0.5
    active, _, _ = select_tokens(draw(GRID), GRID, mask=mask, mode="replace", impl=impl)
    assert active.data_ptr() != mask.data_ptr()
    assert torch.equal(active, mask)


@EACH_IMPL
def test_none_and_all(impl):
    assert not check(draw(GRID), GRID, 16, impl, threshold=1.0).any()
    assert check(draw(GRID), GRID, 16, impl, threshold=-1).all()
    nothing = torch.zeros(2, 24, dtype=torch.bool)
    assert not check(draw(GRID), GRID, 16, impl, threshold=-1.0, previous=nothing).any()


@EACH_IMPL
def test_what_is_not_finite_is_active(impl):
    scores = two_groups(GRID)
    scores[0, 3], scores[0, 7], scores[1, 11] = math.nan, -math.inf, math.inf
    for threshold in (0.5, math.inf, None):
        active = check(scores, GRID, impl=impl, threshold=threshold)
        assert active[0, 3] & active[0, 7] & active[1, 11]
    assert check(torch.full((1, 24), math.nan), GRID, impl=impl).all()


@EACH_IMPL
def test_each_image_has_its_own_cut_which_is_guarded(impl):
    scores = torch.cat(
        [
            two_groups(GRID, 1),
            100 * two_groups(GRID, 1, seed=5),
            torch.linspace(0, 1, 24)[None],  # no gap
            torch.full((1, 24), 0.3),  # one value
        ]
    )
    active = check(scores, GRID, impl=impl)
    assert torch.equal(active[0], scores[0] > 0.4)
    assert torch.equal(active[1], scores[1] > 40)
    assert active[2:].all()


@EACH_IMPL
def test_the_cut_finds_one_token_and_no_cluster_in_noise(impl):
    one_changed = 0.05 * draw(GRID, 1)
    one_changed[0, 9] = 0.4
    assert check(one_changed, GRID, impl=impl).sum() == 1
    grid = (20, 20)
    normal = draw(grid, 1, kind=torch.randn)
    for scores in (normal, normal.exp(), normal.square(), draw(grid, 1)):
        assert check(scores, grid, impl=impl).all()


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@EACH_IMPL
def test_scores_with_an_infinite_sum_are_not_cut(impl):
    scores = torch.full((1, 24), 3e38)
    scores[0, ::2] = 1e38
    assert select_tokens(scores, GRID, impl=impl)[0].all()


@EACH_IMPL
def test_strided_views(impl):
    wide = torch.stack((draw(GRID), draw(GRID, seed=1)), -1)
    previous = (draw(GRID, 1, seed=2) < 0.7).expand(2, -1)
    mask = (draw((6, 4), seed=3) < 0.5).unflatten(1, (6, 4)).mT.flatten(1)
    for scores in (wide[..., 1], wide.mT.flatten(0, 1)[::2], wide[..., 0].T.contiguous().T):
        settings = {"threshold": 0.6, "previous": previous, "mask": mask, "impl": impl}
        check(scores, GRID, **settings)
        check(scores, GRID, dilation=1, hysteresis=0.5, **settings)


def test_no_synchronisation_and_one_graph():
    scores, flags = two_groups(GRID), draw(GRID, seed=1) < 0.6
    compiled = torch.compile(select_tokens, fullgraph=True, backend="eager")
    for threshold in (None, 0.5):
        settings = {"threshold": threshold, "previous": flags, "dilation": 1, "mask": flags}
        settings["hysteresis"] = 0.5
        with NoSync():
            want = select_tokens(scores, GRID, pad_to=16, **settings)
        for a, b in zip(compiled(scores, GRID, pad_to=16, **settings), want, strict=True):
            assert torch.equal(a, b)


def test_errors_say_what_and_how():
    scores, flags = draw(GRID), draw(GRID) < 0.5
    cases = [
        (TypeError, "scores must be a torch.Tensor, got list", ([0.1], GRID), {}),
        (ValueError, r"scores must have shape \[B, N\]", (scores[0], GRID), {}),
        (TypeError, r"scores must be of dtype float32, got float16; .*\.float\(\)",
         (scores.half(), GRID), {}),
        (ValueError, r"grid must be \(rows, cols\) with rows \* cols = N = 24, got \(4, 5\)",
         (scores, (4, 5)), {}),
        (ValueError, "grid must be", (scores, (-4, -6)), {}),
        (ValueError, "scores must hold an image", (scores[:0], GRID), {}),
        (TypeError, "previous must be of dtype bool, got float32", (scores, GRID),
         {"previous": scores}),
        (ValueError, r"mask must have shape .*got \(1, 24\); expand it", (scores, GRID),
         {"mask": flags[:1]}),
        (ValueError, "mask must be on cpu like", (scores, GRID), {"mask": flags.to("meta")}),
        (ValueError, "mode must be one of .*got 'xor'", (scores, GRID), {"mode": "xor"}),
        (TypeError, "threshold must be a float or None, got Tensor", (scores, GRID),
         {"threshold": torch.tensor(0.5)}),
        (ValueError, "threshold must be a number, got nan", (scores, GRID),
         {"threshold": math.nan}),
        (TypeError, "hysteresis must be a float, got Tensor", (scores, GRID),
         {"hysteresis": torch.tensor(0.5)}),
        (TypeError, "hysteresis must be a float, got bool", (scores, GRID), {"hysteresis": True}),
        (TypeError, "hysteresis must be a float, got NoneType", (scores, GRID),
         {"hysteresis": None}),
        *((ValueError, rf"hysteresis must be in \[0, 1\], got {value}; .*0 turns it off",
           (scores, GRID), {"hysteresis": value}) for value in (-0.1, 1.5, math.nan, math.inf)),
        (ValueError, "dilation must be at least 0, got -1", (scores, GRID), {"dilation": -1}),
        (TypeError, "dilation must be an int, got float", (scores, GRID), {"dilation": 1.0}),
        (ValueError, "pad_to must be at least 1, got 0", (scores, GRID), {"pad_to": 0}),
        (ValueError, "impl must be one of", (scores, GRID), {"impl": "cuda"}),
    ]  # fmt: skip
    for error, message, args, kwargs in cases:
        with pytest.raises(error, match=message):
            select_tokens(*args, **kwargs)
