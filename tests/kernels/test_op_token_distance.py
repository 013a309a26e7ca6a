"""Test token_distance against a cell-by-cell fp64 oracle."""

import math
from importlib.util import find_spec

import kernel_oracle as oracle
import pytest
import torch
import torch.nn.functional as F
from kernel_oracle import (
    EACH_IMPL,
    HALVES_AND_FP32,
    NoSync,
    assert_bounded,
    each_impl_in,
    seeded,
)
from spotedit_kernels import token_distance
from spotedit_kernels.token_distance import normalise_features

from bench.shapes import ODD_MAPS, ODD_PATCHES


def maps(batch=2, dtype=torch.float32, seed=0, layers=ODD_MAPS):
    g = seeded(seed)
    return [torch.randn(batch, *shape, generator=g).to(dtype) for shape in layers]


def exact(x, y, grid, patch, weights):
    """Compute the oracle over a batch; if y's batch is 1, it is repeated."""
    scores = []
    for b in range(x[0].shape[0]):
        x_maps = [m[b] for m in x]
        y_maps = [m[b if m.shape[0] > 1 else 0] for m in y]
        scores.append(oracle.token_distance(x_maps, y_maps, grid, patch, weights))
    return torch.stack(scores)


def eager(x, y, grid, patch, weights):
    """Compute the plain composition in the maps' dtype."""
    total = 0
    for a, b, w in zip(x, y, weights, strict=True):
        d = (F.normalize(a, dim=1) - F.normalize(b, dim=1)).square().sum(1, keepdim=True)
        d = F.interpolate(d, size=(grid[0] * patch, grid[1] * patch), mode="bilinear")
        total = total + w / sum(weights) * d
    return F.avg_pool2d(total, patch).flatten(1)


@each_impl_in(HALVES_AND_FP32)
@pytest.mark.parametrize(("grid", "patch"), ODD_PATCHES)
def test_against_the_oracle(dtype, grid, patch, impl):
    x, y = maps(dtype=dtype), maps(dtype=dtype, seed=1)
    weights = [1.0, 0.0, 2.5, 0.5]
    result = token_distance(x, y, grid, patch=patch, weights=weights, impl=impl)
    assert result.shape == (2, grid[0] * grid[1])
    assert result.dtype == torch.float32
    want = exact(x, y, grid, patch, weights)
    assert_bounded(result, want, eager(x, y, grid, patch, weights), torch.float32)


@each_impl_in([*HALVES_AND_FP32, torch.float64])
def test_one_reference_for_the_batch_normalised_once(dtype, impl):
    x, y = maps(batch=3, dtype=dtype), maps(batch=1, dtype=dtype, seed=1)
    want = exact(x, y, (3, 5), 2, [1.0] * 4)
    plain = token_distance(x, y, (3, 5), impl=impl)
    units = normalise_features(y)
    torch.testing.assert_close(plain.double(), want, rtol=0, atol=2e-6)
    prepared = token_distance(x, units, (3, 5), y_normalised=True, impl=impl)
    torch.testing.assert_close(prepared, plain, rtol=0, atol=0 if impl == "reference" else 1e-6)
    for unit in units:
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        assert unit.dtype == wide
        torch.testing.assert_close(unit.norm(dim=1), torch.ones_like(unit[:, 0]))


@EACH_IMPL
@pytest.mark.parametrize("dtypes", [(torch.float16, torch.float32), (torch.float32, torch.float16)])
def test_dtypes_of_x_and_y_may_differ(dtypes, impl):
    x, y = (maps(dtype=d, seed=s, layers=ODD_MAPS[:1]) for s, d in enumerate(dtypes))
    want = exact(x, y, (3, 5), 2, [1.0])
    result = token_distance(x, y, (3, 5), impl=impl)
    torch.testing.assert_close(result.double(), want, rtol=0, atol=2e-6)


@EACH_IMPL
def test_zero_vectors_and_extreme_values(impl):
    x, y = maps(batch=1, layers=[(4, 2, 2)]), maps(batch=1, seed=1, layers=[(4, 2, 2)])
    x[0][..., 0, 0] = 0
    y[0][..., 0, 1] = 0
    x[0][..., 1, 0] = y[0][..., 1, 0] = 0
    y[0][..., 1, 1] = -3 * x[0][..., 1, 1]
    result = token_distance(x, y, (2, 2), patch=1, impl=impl)
    torch.testing.assert_close(result, torch.tensor([[1.0, 1.0, 0.0, 4.0]]))
    large = [torch.full((1, 8, 2, 2), 6e4, dtype=torch.float16)]
    assert (token_distance(large, large, (2, 2), patch=1, impl=impl) == 0).all()


@EACH_IMPL
def test_a_nan_stays_in_its_token(impl):
    x, y = maps(batch=1, layers=[(4, 4, 6)]), maps(batch=1, seed=1, layers=[(4, 4, 6)])
    x[0][0, 2, 1, 3] = math.nan  # a cell of the second token of a 2 x 3 grid
    result = token_distance(x, y, (2, 3), impl=impl)
    assert result.isnan().tolist() == [[False, True, False, False, False, False]]


@EACH_IMPL
def test_close_maps_keep_relative_accuracy(impl):
    x = maps(batch=1, layers=[(16, 4, 4)])
    y = [m + 1e-4 * torch.randn(m.shape, generator=seeded(3)) for m in x]
    want = exact(x, y, (2, 2), 2, [1.0])
    result = token_distance(x, y, (2, 2), impl=impl)
    torch.testing.assert_close(result.double(), want, rtol=1e-2, atol=0)


@EACH_IMPL
def test_row_major_and_scale_free(impl):
    x = [torch.zeros(1, 2, 4, 6)]
    x[0][:, 0] = 1
    y = [x[0].clone()]
    y[0][:, :, 2:, 4:] = torch.tensor([0.0, 1.0])[:, None, None]  # the last token of a 2 x 3 grid
    want = torch.tensor([[0, 0, 0, 0, 0, 2.0]])
    torch.testing.assert_close(token_distance(x, y, (2, 3), impl=impl), want)
    scaled = token_distance([7 * x[0]], [0.01 * y[0]], (2, 3), impl=impl)
    torch.testing.assert_close(scaled, want)


@EACH_IMPL
def test_memory_formats(impl):
    x, y = maps(), maps(seed=1)
    want = token_distance(x, y, (3, 5))
    last = [m.to(memory_format=torch.channels_last) for m in x]
    views = [torch.stack((m, m), -1)[..., 0] for m in y]
    crops = [F.pad(m, (1, 2, 3, 1), value=math.nan)[..., 3:-1, 1:-2] for m in x]
    for other in (last, crops):
        torch.testing.assert_close(token_distance(other, views, (3, 5), impl=impl), want)


@pytest.mark.skipif(find_spec("lpips") is None, reason="lpips is not installed")
@EACH_IMPL
def test_equals_lpips_without_learned_weights(impl):
    import lpips

    x, y = maps(), maps(seed=1)
    maps_of_layers = []
    for a, b in zip(x, y, strict=True):
        difference = lpips.normalize_tensor(a) - lpips.normalize_tensor(b)
        squared = difference.square().sum(1, keepdim=True)
        maps_of_layers.append(lpips.upsample(squared, out_HW=(6, 10)))
    mean = torch.stack(maps_of_layers).mean(0)
    tokens = [
        lpips.spatial_average(mean[..., 2 * i : 2 * i + 2, 2 * j : 2 * j + 2], keepdim=False)
        for i in range(3)
        for j in range(5)
    ]
    want = torch.stack(tokens, -1).flatten(1)  # [B, 15]
    torch.testing.assert_close(token_distance(x, y, (3, 5), impl=impl), want, rtol=0, atol=2e-6)


def test_no_synchronisation_and_one_graph():
    x, y = maps(), maps(batch=1, seed=1)
    with NoSync():
        want = token_distance(x, normalise_features(y), (3, 5), weights=(1, 1, 1, 2))
    compiled = torch.compile(token_distance, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x, y, (3, 5), weights=(1, 1, 1, 2)), want)


def test_errors_say_what_and_how():
    x, y = maps(), maps(seed=1)
    cases = [
        (TypeError, "must be a sequence of maps.*wrap a single map", (x[0], y, (3, 5)), {}),
        (TypeError, r"x_features\[1\] must be a torch.Tensor, got int", ([x[0], 1], y, (3, 5)), {}),
        (ValueError, "x_features must hold at least one map", ([], [], (3, 5)), {}),
        (ValueError, "the same number of layers, got 4 and 3", (x, y[:3], (3, 5)), {}),
        (ValueError, r"x_features\[0\] must have shape \[B, C", ([x[0][0]], y[:1], (3, 5)), {}),
        (ValueError, r"y_features\[0\] must have shape .*its batch may be 1",
         (x[:1], [y[0][:, 1:]], (3, 5)), {}),
        (ValueError, r"x_features\[1\] must have shape .*first layer's batch",
         ([x[0], x[1][:1]], y[:2], (3, 5)), {}),
        (TypeError, r"y_features\[1\] must be of dtype", (x, [y[0], y[1].int()], (3, 5)), {}),
        (ValueError, "must not be empty", ([x[0][:, :0]], [y[0][:, :0]], (3, 5)), {}),
        (ValueError, "must be on cpu like", (x[:1], [y[0].to("meta")], (3, 5)), {}),
        (ValueError, r"grid must be \(rows, cols\)", (x, y, (0, 5)), {}),
        (ValueError, r"grid must be \(rows, cols\)", (x, y, (15,)), {}),
        (ValueError, "patch must be at least 1, got 0", (x, y, (3, 5)), {"patch": 0}),
        (ValueError, "weights must be 4 non-negative", (x, y, (3, 5)), {"weights": [1, 2]}),
        (ValueError, "weights must be 4 non-negative", (x, y, (3, 5)), {"weights": [1, -1, 1, 1]}),
        (ValueError, "positive finite sum", (x, y, (3, 5)), {"weights": [0, 0, 0, 0]}),
        (ValueError, "positive finite sum", (x, y, (3, 5)), {"weights": [math.nan, 1, 1, 1]}),
        (TypeError, "weights must be a sequence of floats.*tolist", (x, y, (3, 5)),
         {"weights": torch.ones(4)}),
        (RuntimeError, "impl='triton' was asked for.*in fp64",
         (x, [*y[:3], y[3].double()], (3, 5)), {"impl": "triton"}),
    ]  # fmt: skip
    for error, message, args, kwargs in cases:
        with pytest.raises(error, match=message):
            token_distance(*args, **kwargs)
